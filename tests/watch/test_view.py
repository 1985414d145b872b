# SPDX-License-Identifier: Apache-2.0
"""From texts of two scrapes to figures and rates."""

import pytest
from fake_metrics import LABELS, STOCK_METRICS, info, metrics, vtensor_info, vtensor_metrics

from vt_sglang.watch.reader import NO_METRICS, NO_VTENSOR, sample
from vt_sglang.watch.sample import table
from vt_sglang.watch.view import view


def test_rates_and_shares_of_an_interval() -> None:
    before = sample(vtensor_metrics(), vtensor_info(), 100.0)
    now = sample(vtensor_metrics(prompts=3000, adopted=600, aliased=550, copied=5), None, 102.0)
    found = view(now, before)
    assert found.hit_rate_now == pytest.approx(1000 / 2000)
    assert found.hit_rate == pytest.approx(1155 / 3000)
    assert found.cached_by_source == {"adopted": 600, "aliased": 550, "copied": 5}
    assert found.prompt_tokens_per_s == 1000
    assert found.output_tokens_per_s == 500
    assert found.requests_per_s == 10
    assert found.driver_calls_per_s == 1000
    assert found.driver_share == pytest.approx(0.2 / 2)
    assert found.evicted_tokens_per_s == 0
    assert found.kv_reused_bytes_per_s == 5000
    assert (found.running, found.queued, found.token_usage) == (3, 2, 0.5)


def test_one_sample_says_nothing_of_now() -> None:
    found = view(sample(vtensor_metrics(), vtensor_info(), 100.0))
    assert found.hit_rate == pytest.approx(0.155)
    assert found.hit_rate_now is found.prompt_tokens_per_s is found.driver_share is None


def test_an_interval_without_prompts_has_no_hit_rate() -> None:
    both = [sample(vtensor_metrics(), None, time) for time in (1.0, 2.0)]
    found = view(both[1], both[0])
    assert found.hit_rate_now is None
    assert found.prompt_tokens_per_s == 0


def test_a_server_started_again_counts_from_nothing() -> None:
    found = view(sample(vtensor_metrics(prompts=10), None, 2.0), sample(vtensor_metrics(prompts=1000), None, 1.0))
    assert found.prompt_tokens_per_s == 10


def test_memory_is_told_by_state() -> None:
    found = view(sample(vtensor_metrics(), None, 1.0))
    assert found.pages == {"pinned": 10, "evictable": 20, "free": 30, "not_created": 39, "withheld": 1}
    assert found.budget_bytes == 100 * 2**20
    assert found.physical_bytes == 61 * 2**20


def test_the_busiest_save_most() -> None:
    busiest = view(sample(vtensor_metrics(), vtensor_info(), 1.0)).busiest
    assert busiest is not None
    assert [it["saved_tokens"] for it in busiest] == [8 * 512, 2 * 500]


def test_without_metrics_server_info_stands_in() -> None:
    now = sample(None, vtensor_info(), 1.0)
    found = view(now)
    assert not now.has_metrics
    assert found.notes == [NO_METRICS]
    assert found.hit_rate == pytest.approx(0.155)
    assert found.cached_by_source == {"adopted": 100, "aliased": 50, "copied": 5}
    assert (found.running, found.queued) == (3, None)
    assert found.output_tokens_per_s == 12.5  # the server's own word
    assert found.driver_seconds == pytest.approx(0.005)
    assert found.kv_reused_bytes == 1550
    assert found.pages is not None
    assert sum(found.pages.values()) == 100


def test_replicas_are_summed() -> None:
    replica = vtensor_info()["internal_states"][0]["vtensor"]
    found = view(sample(None, info(replica, replica), 1.0))
    assert found.prompt_tokens == 2000
    assert found.page_bytes == 2**20
    assert found.budget_bytes == 200 * 2**20
    assert found.output_tokens_per_s == 25
    assert len(found.busiest or []) == 4


def test_a_stock_server_is_shown_in_part() -> None:
    now = sample(STOCK_METRICS, info(None), 1.0)
    found = view(now)
    assert found.notes == [NO_VTENSOR]
    assert (found.running, found.queued, found.token_usage, found.evicted_tokens) == (1, 0, 0.25, 9)
    assert (found.prompt_tokens, found.cached_tokens, found.hit_rate) == (100, 40, 0.4)
    assert found.pages is found.cached_by_source is found.busiest is found.driver_calls is None


def test_a_stock_server_without_metrics_lacks_both() -> None:
    assert view(sample(None, info(None), 1.0)).notes == [NO_METRICS, NO_VTENSOR]


def test_replicas_and_ways_of_streaming_are_summed_and_ranks_are_not() -> None:
    name = "sglang:vtensor_prompt_tokens_total"
    text = f'{name}{{{LABELS},dp_rank="0"}} 5\n{name}{{{LABELS},dp_rank="1"}} 7\n'
    other = LABELS.replace('tp_rank="0"', 'tp_rank="1"')
    text += f'{name}{{{other},dp_rank="0"}} 5\nsglang:prompt_tokens_total{{is_streaming="true"}} 1\n'
    text += 'sglang:prompt_tokens_total{is_streaming="false"} 2\n'
    text += f'sglang:num_queue_reqs{{{LABELS},priority=""}} 9\nsglang:num_queue_reqs{{{LABELS},priority="3"}} 9\n'
    assert table(text) == {name: 12, "sglang:prompt_tokens_total": 3, "sglang:num_queue_reqs": 9}


def test_metrics_of_something_else_are_no_metrics() -> None:
    now = sample(metrics(other=1), vtensor_info(), 1.0)
    assert not now.has_metrics
    assert now.has_vtensor
