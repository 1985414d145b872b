# SPDX-License-Identifier: Apache-2.0
"""Results to report on: those of bench/results, and small ones made here of what is not kept there."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"
TOKEN_BYTES = 131_072


def over_time(rate: float) -> list[dict[str, Any]]:
    return [
        {"time_s": 60.0 * step, "prompt_tokens": 1_000 * step, "cached_tokens": int(1_000 * step * rate)}
        for step in range(1, 31)
    ]


def replay_result() -> dict[str, Any]:
    """Of two capacities, the first of which has no RadixCache beside it."""

    def capacity(tokens: int, rate: float, *, radix: bool) -> dict[str, Any]:
        found = {"adopted": 3_000, "aliased": 5_000, "copied": 100}
        return {
            "tokens": tokens,
            "bytes": tokens * TOKEN_BYTES,
            "vtensor": {
                "hit_rate": rate,
                "request_hit_rate": 0.6,
                "over_time": over_time(rate),
                "seconds": 0.01,
                "tokens": {**found, "computed": 21_900},
                "bytes": {name: count * TOKEN_BYTES for name, count in found.items()},
                "pages": {"budget": 500, "held": 400, "free": 20, "not_created": 80, "nodes": 7},
                "page_waste_bytes": 2**20,
            },
            "radix": {"hit_rate": rate - 0.01, "request_hit_rate": 0.5, "over_time": over_time(rate), "seconds": 0.4}
            if radix
            else None,
            "times_faster": 40.0 if radix else None,
        }

    return {
        "schema": 1,
        "kind": "replay",
        "date": "2026-01-02T03:04:05+00:00",
        "command_line": "vt-sglang replay trace.jsonl",
        "versions": {"python": "3.11.7", "vt-sglang": "0.1.0", "sglang": None},
        "machine": {"cpu": "A processor", "cores": 2, "gpus": []},
        "trace": {"path": "trace.jsonl", "requests": 30, "skipped": 0, "prompt_tokens": 30_000, "duration_s": 1_800.0},
        "model": {"name": "llama-3-8b", "token_bytes": TOKEN_BYTES, "page_bytes": 2**21, "page_tokens": 16.0},
        "grain_tokens": 1,
        "infinite": {"hit_rate": 0.386, "request_hit_rate": 0.7, "over_time": over_time(0.386)},
        "capacities": [capacity(200_000, 0.21, radix=False), capacity(800_000, 0.381, radix=True)],
        "curve": [{"tokens": n, "bytes": n * TOKEN_BYTES, "hit_rate": n / 3e6} for n in range(0, 1_000_000, 25_000)],
        "knee": {"tokens": 700_000, "bytes": 700_000 * TOKEN_BYTES, "hit_rate": 0.37},
        "reuse_distance": [{"up_to_tokens": 2**it, "tokens": 100 * it} for it in range(1, 6)],
        "prefixes": [{"start": 0, "end": 512, "requests": 9, "saved_tokens": 4_608, "first_ids": [1, 2, 3]}],
    }


def chat_result(servers: tuple[str, ...] = ("stock", "vtensor"), *, repeats: bool = False) -> dict[str, Any]:
    """With single requests, memory samples and, if asked for, statistics of repeats."""
    result: dict[str, Any] = json.loads((RESULTS / "chat.json").read_text())
    result["servers"] = [server for server in result["servers"] if server["name"] in servers]
    for server in result["servers"]:
        del server["by_turn"], server["by_cached_share"]
        server["requests"] = [
            {
                "dialogue": dialogue,
                "turn": turn,
                "error": None,
                "prompt_tokens": 200 + 100 * turn,
                "cached_tokens": 100 * turn + 10 * dialogue,
                "ttft_ms": 50.0 - 10 * turn + dialogue,
                "start_s": 2.0 * turn + 0.1 * dialogue,
            }
            for dialogue in range(4)
            for turn in range(3)
        ]
        server["memory"] = [{"time_s": 0.5 * it, "kv_bytes": it * 2**20} for it in range(1, 5)]
    if repeats:
        result["statistics"] = {"confidence": 0.95, "method": "t"}
        result["figures"] = [
            {
                "metric": "output_tokens_per_s",
                "sides": {
                    name: {"runs": 3, "mean": 100.0 + at, "ci_low": 90.0 + at, "ci_high": 110.0 + at}
                    for at, name in enumerate(servers)
                },
                "beside": {name: {"ratio": 1.01, "verdict": "within noise"} for name in servers[1:]},
            }
        ]
    return result
