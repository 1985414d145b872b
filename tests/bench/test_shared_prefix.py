# SPDX-License-Identifier: Apache-2.0
"""What bench/shared_prefix.py compares; the run itself is in tests/adapter/test_server.py."""

from pathlib import Path

import pytest
from shared_prefix import SOURCES, add_tokenizer, figures, gained
from tokenizers import Tokenizer

REPORT = {"cache_report": {"total_prompt_tokens": 100, "total_cached_tokens": 60}}


def scrape(*, cached: float = 60, prompts: float = 100, again: float = 0) -> dict[str, float]:
    ours = {f"sglang:vtensor_cached_tokens_total{{source={it}}}": 0.0 for it in SOURCES}
    ours["sglang:vtensor_cached_tokens_total{source=aliased}"] = cached + again
    ours |= {
        "sglang:vtensor_prompt_tokens_total": prompts + 2 * again,
        "sglang:vtensor_rebound_prompt_tokens_total": 2 * again,
        "sglang:vtensor_rebound_cached_tokens_total": again,
    }
    return ours | {"sglang:prompt_tokens_total": prompts, "sglang:cached_tokens_total": cached}


@pytest.mark.parametrize("again", [0, 7])
def test_equal_figures_are_equal_whatever_was_retracted(again: float) -> None:
    before = scrape(cached=0, prompts=0)
    found = figures(before, scrape(again=again), REPORT)
    assert {tuple(it.values()) for it in found.values()} == {(100, 60)}


def test_a_token_too_few_shows() -> None:
    found = figures(scrape(cached=0, prompts=0), scrape(cached=59), REPORT)
    assert found["benchmark"] != found["vtensor_metrics"]


def test_counters_that_are_not_there_yet_begin_at_zero() -> None:
    assert gained("new", {}, {"new": 5.0}) == 5
    assert gained("never", {}, {}) == 0


def test_every_sequence_of_tokens_is_a_text_of_its_own(tmp_path: Path) -> None:
    """The benchmark draws tokens, decodes them, and counts on the server to find the same ones."""
    add_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = list(range(tokenizer.get_vocab_size()))
    ids += [*reversed(ids), 0, 0, 0, *range(0, 95, 7)]
    assert tokenizer.get_vocab_size() == 95
    assert tokenizer.encode(tokenizer.decode(ids)).ids == ids
