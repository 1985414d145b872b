# SPDX-License-Identifier: Apache-2.0
"""Long prompts that arrive while others decode, prefilled in one batch with these (`--enable-mixed-chunk`); and nothing
on the way, in prefill, decode or both at once, reads SGLang's table of token indices, which holds rubbish."""

from pathlib import Path
from typing import Any

import toy
from logprobs import compare_noted
from schedulers import SERVER_ARGS, STOCK, VTENSOR, run_scheduler

REQUESTS, NEW = 6, 40


def test_log_probabilities_are_stocks_without_mixing(tmp_path: Path) -> None:
    model = toy.write_model(tmp_path / "model")
    common = SERVER_ARGS | {"model_path": str(model), "max_total_tokens": 20000}
    results: dict[str, dict[str, Any]] = {}
    for name, arguments in (("stock", STOCK), ("mixed", VTENSOR | {"enable_mixed_chunk": True})):
        (tmp_path / name).mkdir()
        settings = {
            "server_args": common | arguments,
            "environment": {"VTENSOR_PAGE_BYTES": "4096", "VTENSOR_CHECK": "1"},
            "poison_index_table": name == "mixed",
            "workload": {
                "kind": "generations",
                "seed": 4,
                "requests": REQUESTS,
                "new": NEW,
                "longest_prompt": 400,
                "vocabulary": toy.VOCABULARY,
                "every": 12,
                "shares": False,
                "logprobs": False,
                "forced": True,
                "noted": True,
            },
        }
        results[name] = run_scheduler(tmp_path / name, settings)
    assert results["mixed"]["modes"]["MIXED"] > 10
    assert "MIXED" not in results["stock"]["modes"]
    assert results["mixed"]["outputs"] == results["stock"]["outputs"]
    difference = compare_noted(results["stock"], results["mixed"])
    assert difference.tokens == REQUESTS * NEW
    assert difference.largest < 1e-3, difference
    assert results["mixed"]["vtensor"]["leaks"] == 0
