# SPDX-License-Identifier: Apache-2.0
"""Published hit rates of a Mooncake trace, and a small trace of the same kind that is always there; and how near the
core comes to a cache that evicts single tokens, on both."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replay_reference import BLOCK, lru_of_tokens, records

from vt_sglang.replay import texts, trace, work

Replay = Callable[..., Any]

TRACE = Path(__file__).parents[3] / "shared" / "traces" / "mooncake_conv_1of16_le32k.jsonl"
PUBLISHED = {"infinite": 0.386, "0.2M": 0.215, "0.4M": 0.300, "0.8M": 0.381}


def lru_of_blocks(lines: list[dict[str, Any]], capacity: float) -> float:
    """Hit rate by tokens of an LRU cache of blocks, the last of a prompt as large as the others; a use counts from the
    last block to the first."""
    blocks: OrderedDict[int, None] = OrderedDict()
    prompt = cached = 0
    for line in lines:
        ids, length = line["hash_ids"], line["input_length"]
        found = next((index for index, block in enumerate(ids) if block not in blocks), len(ids))
        cached += min(found * BLOCK, length - 1)
        prompt += length
        for block in reversed(ids):
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > capacity // BLOCK:
            blocks.popitem(last=False)
    return cached / prompt


def test_blocks_are_an_lru_of_blocks(replay: Replay, write: Callable[..., Path]) -> None:
    lines = records()
    capacities = (20_000, 50_000, 100_000)
    asked = ",".join(map(str, capacities))
    found = replay(write(lines), "--grain", "512", "--no-outputs", "--no-radix", "--capacity", asked).json
    assert found["infinite"]["hit_rate"] == pytest.approx(lru_of_blocks(lines, float("inf")))
    rates = [it["vtensor"]["hit_rate"] for it in found["capacities"]]
    assert rates == pytest.approx([lru_of_blocks(lines, it) for it in capacities], abs=0.002)
    assert rates[0] < rates[1] < rates[2] <= found["infinite"]["hit_rate"]


def test_outputs_take_room_that_prompts_would_have(replay: Replay, write: Callable[..., Path]) -> None:
    path = write(records())
    options = ("--no-radix", "--capacity", "50000")
    with_outputs = replay(path, *options).json
    without = replay(path, *options, "--no-outputs").json
    assert with_outputs["infinite"]["cached_tokens"] == without["infinite"]["cached_tokens"]
    cached = [it["capacities"][0]["vtensor"]["cached_tokens"] for it in (with_outputs, without)]
    assert cached[0] < cached[1]


@pytest.mark.skipif(not TRACE.exists(), reason=f"there is no {TRACE}")
def test_published_figures(replay: Replay) -> None:
    result = replay(TRACE, "--grain", "512", "--no-outputs", "--no-radix", "--capacity", "0.2M,0.4M,0.8M")
    found = result.json
    assert found["trace"]["requests"] == 686
    rates = {"infinite": found["infinite"]["hit_rate"]}
    for name, entry in zip(("0.2M", "0.4M", "0.8M"), found["capacities"], strict=True):
        rates[name] = entry["vtensor"]["hit_rate"]
    assert rates == pytest.approx(PUBLISHED, abs=0.001)


@pytest.mark.skipif(not TRACE.exists(), reason=f"there is no {TRACE}")
def test_token_for_token_the_figures_are_a_little_different(replay: Replay) -> None:
    """docs/replay.md says why."""
    found = replay(TRACE, "--no-radix", "--capacity", "0.2M,0.4M,0.8M").json
    assert found["infinite"]["hit_rate"] == pytest.approx(0.386, abs=0.001)
    rates = [it["vtensor"]["hit_rate"] for it in found["capacities"]]
    assert rates == pytest.approx([0.212, 0.297, 0.379], abs=0.002)


def ideal_and_found(said: dict[str, Any]) -> list[tuple[float, float]]:
    """Of each capacity the hit rate of an LRU cache of single tokens, as the curve has it, and the core's."""
    ideal = {point["tokens"]: point["hit_rate"] for point in said["curve"]}
    return [(ideal[it["tokens"]], it["vtensor"]["hit_rate"]) for it in said["capacities"]]


@pytest.mark.skipif(not TRACE.exists(), reason=f"there is no {TRACE}")
def test_within_two_percent_of_an_lru_of_tokens(replay: Replay) -> None:
    said = replay(TRACE, "--model", "llama-3-8b", "--no-radix", "--capacity", "0.1M,0.2M,0.3M,0.4M,0.8M").json
    both = ideal_and_found(said)
    assert said["infinite"]["hit_rate"] > both[0][0] > 0.1
    for ideal, found in both:
        assert found == pytest.approx(ideal, abs=0.02)
    for ideal, found in both[1:]:  # not where memory is a dozen of a prompt's chunks, which are evicted whole
        assert found == pytest.approx(ideal, rel=0.02)


def test_a_small_trace_is_within_two_percent_of_an_lru_of_tokens(replay: Replay, write: Callable[..., Path]) -> None:
    path = write(records(count=80))
    capacities = (20_000, 30_000, 60_000)
    options = ("--capacity", ",".join(map(str, capacities)), "--chunk", "512", "--model", "llama-3-8b", "--no-radix")
    said = replay(path, *options).json
    works = work.prepare(trace.read(path, texts.make(None)).requests, 1)
    cached = [lru_of_tokens(works, it) / said["trace"]["prompt_tokens"] for it in capacities]
    both = ideal_and_found(said)
    assert [ideal for ideal, _ in both] == pytest.approx(cached)
    assert 1.1 * cached[0] < cached[2] < said["infinite"]["hit_rate"]
    for ideal, found in both:
        assert found == pytest.approx(ideal, abs=0.02)
        assert found == pytest.approx(ideal, rel=0.02)
