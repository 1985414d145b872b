# SPDX-License-Identifier: Apache-2.0
"""Metrics follow the core and the tally, go up only, and count pages by state so that nothing is missing."""

from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import prometheus_client
import pytest
import torch

from vt_sglang._core import KVCache
from vt_sglang.adapter.metrics import Following, Metrics
from vt_sglang.adapter.pages import pages_by_state
from vt_sglang.adapter.tally import Tally
from vt_sglang.watch.sample import table

LABELS = {"model_name": "toy", "engine_type": "unified", "tp_rank": 0, "pp_rank": 0}
BUDGET = 8


class World:
    """A core, what counts beside it, and a registry of its own to scrape."""

    def __init__(self) -> None:
        self.core = KVCache(
            driver="host", page_bytes=4096, token_bytes=256, slots=4, slot_tokens=128, budget_pages=BUDGET
        )
        self.evicted: list[float] = []
        collector = SimpleNamespace(increment_eviction_num_tokens=self.evicted.append)
        self.cache: Any = SimpleNamespace(core=self.core, tally=Tally(), metrics_collector=collector)
        self.registry = prometheus_client.CollectorRegistry()
        classes = SimpleNamespace(
            _counter_cls=self._in(prometheus_client.Counter), _gauge_cls=self._in(prometheus_client.Gauge)
        )
        self.metrics = Metrics(self.cache, LABELS, classes)

    def _in(self, kind: Any) -> Callable[..., Any]:
        return lambda **options: kind(registry=self.registry, **options)

    def text(self) -> str:
        return prometheus_client.generate_latest(self.registry).decode()

    def scrape(self) -> dict[str, float]:
        found = table(self.text())
        return {
            name.removeprefix("sglang:vtensor_"): value
            for name, value in found.items()
            if not name.split("{")[0].endswith("_created")  # when a counter began, and no counter
        }

    def request(self, tokens: list[int]) -> None:
        """Match, bind, record and end a request."""
        node, found = self.core.match(None, array("q", tokens), len(tokens) - 1, len(tokens))
        self.core.lock(node)
        slot = self.core.bind(None, node, len(tokens))[0]
        self.core.unlock(node)
        req = SimpleNamespace(full_untruncated_fill_ids=tokens, prefix_indices=range(found), retracted_stain=False)
        self.cache.tally.bound(req)
        self.core.complete_forward(self.core.begin_forward(np.array([slot], dtype=np.int64)))
        self.core.record(slot, array("q", tokens))
        self.core.release(slot)


@pytest.fixture
def world() -> World:
    return World()


def test_a_scrape_equals_the_core(world: World) -> None:
    for number in range(6):
        world.request([1, *range(100, 100 + 15 * number), *range(500 * number, 500 * number + 30)])
    world.metrics.update()
    found, counters, usage = world.scrape(), world.core.counters(), world.core.usage()
    assert counters["nodes_evicted"] > 0
    assert counters["tokens_matched"] > 0
    for source in ("adopted", "aliased", "copied"):
        tokens = counters[f"tokens_{source}"]  # type: ignore[literal-required]
        assert found[f"cached_tokens_total{{source={source}}}"] == tokens
        assert found[f"kv_reused_bytes_total{{source={source}}}"] == tokens * 256
    assert found["requests_bound_total"] == counters["binds"] == 6
    assert found["prompt_tokens_total"] == sum(31 + 15 * number for number in range(6))
    assert found["evicted_tokens_total"] == counters["tokens_evicted"] == sum(world.evicted)
    assert found["driver_calls_total"] == counters["driver_calls"]
    assert found["driver_seconds_total"] == pytest.approx(counters["driver_ns"] / 1e9)
    for name in ("pages_created", "pages_aliased", "pages_mapped", "pages_unmapped", "tails_copied", "tails_extended"):
        assert found[f"{name}_total"] == counters[name], name  # type: ignore[literal-required]
    assert found["tree_tokens"] == usage["tree_tokens"]
    assert sum(found[f"pages{{state={state}}}"] for state in pages_by_state(usage)) == BUDGET


def test_every_metric_has_the_labels_of_sglang(world: World) -> None:
    for line in world.text().splitlines():
        if not line.startswith("#"):
            assert 'model_name="toy"' in line
            assert 'tp_rank="0"' in line
            assert line.startswith("sglang:vtensor_")


def test_forgetting_the_cache_lowers_no_counter(world: World) -> None:
    world.request(list(range(40)))
    world.request(list(range(50)))
    world.metrics.update()
    before = world.scrape()
    world.core.clear()
    world.metrics.update()
    after = world.scrape()
    assert after["tree_tokens"] == 0 < before["tree_tokens"]
    assert not {name for name in after if "_total" in name and after[name] < before[name]}


def test_a_count_that_begins_anew_adds_to_its_counter() -> None:
    came: list[float] = []
    counter = Following(came.append)
    for count in (5, 5, 9, 2, 4):
        counter.to(count)
    assert came == [5, 4, 2, 2]


def test_updates_are_rare_and_an_idle_moment_brings_the_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("vt_sglang.adapter.metrics.time.monotonic", lambda: now)
    world.metrics.update()
    world.request(list(range(20)))
    world.metrics.stepped()
    assert world.scrape()["prompt_tokens_total"] == 0
    now += 1.5
    world.metrics.stepped()
    assert world.scrape()["prompt_tokens_total"] == 20
    world.request(list(range(30)))  # of the same forward: its requests end after the update
    assert world.scrape()["prompt_tokens_total"] == 20
    world.metrics.idle()
    assert world.scrape()["prompt_tokens_total"] == 50
    world.request(list(range(40)))
    world.metrics.stepped()
    assert world.scrape()["prompt_tokens_total"] == 50
    world.metrics.idle()
    assert world.scrape()["prompt_tokens_total"] == 90
    monkeypatch.setattr(world.metrics, "update", lambda: pytest.fail("nothing happened since"))
    world.metrics.idle()


def test_pages_by_state_follow_a_page_through_its_life(world: World) -> None:
    def pages() -> dict[str, int]:
        found = pages_by_state(world.core.usage())
        assert sum(found.values()) == BUDGET
        assert min(found.values()) >= 0
        return {state: count for state, count in found.items() if count}

    assert pages() == {"not_created": 8}
    slot = world.core.bind(None, 0, 33)[0]
    assert pages() == {"pinned": 3, "not_created": 5}
    world.core.record(slot, array("q", range(33)))
    world.core.release(slot)
    assert pages() == {"evictable": 3, "not_created": 5}
    world.core.evict(3)
    assert pages() == {"free": 3, "not_created": 5}
    world.core.trim()
    assert pages() == {"not_created": 8}


def test_withheld_pages_are_a_state_of_their_own() -> None:
    core = KVCache(
        driver="host", page_bytes=4096, token_bytes=256, slots=4, slot_tokens=64, budget_pages=5, inject_faults=True
    )
    core.limit_memory(3)  # the padding page is one
    core.create_ahead(4)
    assert pages_by_state(core.usage()) == {
        "free": 2,
        "pinned": 0,
        "evictable": 0,
        "withheld": 3,
        "not_created": 0,
    }


def _batch(lengths: list[int], *, extends: bool, decoding: int | None = None) -> Any:
    mode = SimpleNamespace(is_extend=lambda: extends)
    running = None if decoding is None else torch.zeros(decoding)
    return SimpleNamespace(seq_lens_cpu=torch.tensor(lengths), forward_mode=mode, mix_running_indices=running)


def test_tokens_read_are_told_apart_by_phase() -> None:
    tally = Tally()
    tally.forward(_batch([10, 20], extends=True))
    assert (tally.prefill_read_tokens, tally.decode_read_tokens) == (30, 0)
    tally.forward(_batch([11, 21], extends=False))
    assert (tally.prefill_read_tokens, tally.decode_read_tokens) == (30, 32)
    tally.forward(_batch([100, 12, 22], extends=True, decoding=2))  # those that decode stand last
    assert (tally.prefill_read_tokens, tally.decode_read_tokens) == (130, 66)
    tally.forward(_batch([7], extends=True, decoding=0))
    assert (tally.prefill_read_tokens, tally.decode_read_tokens) == (137, 66)
    tally.forward(_batch([30, 30], extends=False))
    tally.saved(25.0)
    assert (tally.decode_read_tokens, tally.decode_saved_tokens) == (101, 25)


def test_requests_that_come_back_are_counted_again_and_apart() -> None:
    tally = Tally()
    for stain, tokens, cached in ((False, 10, 4), (True, 14, 9)):
        req = SimpleNamespace(
            full_untruncated_fill_ids=range(tokens), prefix_indices=range(cached), retracted_stain=stain
        )
        tally.bound(req)
    assert tally.prompt_tokens == 24
    assert (tally.rebound_requests, tally.rebound_prompt_tokens, tally.rebound_cached_tokens) == (1, 14, 9)


def test_a_namespace_is_masked_but_told_apart(world: World) -> None:
    from vt_sglang.adapter.state import describe

    world.cache.leaks = 0
    for salt in (None, "alice's secret", "bob's secret"):
        for _ in range(2):
            node = world.core.match(salt, array("q", range(20)), 19)[0]
            world.core.lock(node)
            slot = world.core.bind(salt, node, 20)[0]
            world.core.record(slot, array("q", range(20)))
            world.core.release(slot)
            world.core.unlock(node)
    busiest = describe(world.cache)["busiest"]
    assert {it["hits"] for it in busiest} == {1}
    names = [it["namespace"] for it in busiest if it["namespace"] is not None]
    assert len(set(names)) == 2
    assert "secret" not in repr(busiest)
