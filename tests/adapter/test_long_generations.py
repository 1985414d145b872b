# SPDX-License-Identifier: Apache-2.0
"""Log probabilities over long generations, against stock SGLang's."""

from pathlib import Path
from typing import Any

import pytest
import toy
from logprobs import compare
from schedulers import SERVER_ARGS, STOCK, VTENSOR, run_scheduler

WORKLOAD = {"kind": "generations", "seed": 3, "requests": 8, "new": 200, "longest_prompt": 300}


def test_log_probabilities_are_stocks(tmp_path: Path) -> None:
    """Of tokens that are forced on both servers."""
    model = toy.write_model(tmp_path / "model")
    common = SERVER_ARGS | {"model_path": str(model), "max_total_tokens": 20000}
    results = []
    for name, arguments in (("stock", STOCK), ("vtensor", VTENSOR)):
        (tmp_path / name).mkdir()
        settings = {
            "server_args": common | arguments,
            "environment": {"VTENSOR_PAGE_BYTES": "4096"},
            "workload": WORKLOAD | {"vocabulary": toy.VOCABULARY, "forced": True},
        }
        results.append(run_scheduler(tmp_path / name, settings))
    difference = compare(*results)
    assert (difference.tokens, difference.parted) == (8 * 200, 0)
    assert difference.largest < 1e-3
    assert results[0]["outputs"] == results[1]["outputs"]


def test_a_difference_is_found() -> None:
    """In what was chosen, where it was no near tie, and in how likely it was."""
    best = [[7, 9], [-0.5, -0.9]]

    def result(*steps: tuple[int, float]) -> dict[str, Any]:
        return {"logprobs": {"a": [[token, probability, *best] for token, probability in steps]}}

    stock = result((7, -0.5), (7, -0.5))
    assert compare(stock, stock) == (2, 0, 0.0, 0.0)
    assert compare(stock, result((7, -0.53), (7, -0.5))) == (2, 0, pytest.approx(0.03), 0.0)
    assert compare(stock, result((7, -0.5), (9, -0.5))) == (1, 1, 0.0, pytest.approx(0.4))
    assert compare(stock, result((8, -0.5), (7, -0.5))) == (0, 1, 0.0, float("inf"))
