# SPDX-License-Identifier: Apache-2.0
"""Memory that goes back while a server runs: by a limit, and after a while without work."""

import json
import random
import subprocess
import sys
import time
import urllib.error
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded import Recorded
from servers import generate, metrics, post, running, vtensor_state

from vt_sglang._core import KVCache
from vt_sglang.adapter.elastic import Elastic
from vt_sglang.adapter.pages import pages_by_state
from vt_sglang.adapter.state import check_when_idle, set_internal_state
from vt_sglang.adapter.tree_cache import VTensorCache
from vt_sglang.config import MEMORY_LIMIT

PAGE = 4096
TOKENS = 16  # a page
BUDGET = 100


class World:
    """A core, and the time."""

    def __init__(self, idle_trim_s: float = 0.0) -> None:
        self.core = KVCache(
            driver="host", page_bytes=PAGE, token_bytes=PAGE // TOKENS, slots=5, slot_tokens=1600, budget_pages=BUDGET
        )
        self.now_s = 0.0
        self.elastic = Elastic(self.core, idle_trim_s, lambda: self.now_s)

    def cached(self, namespace: str, pages: int) -> None:
        slot = self.core.bind(namespace, 0, pages * TOKENS)[0]
        self.core.record(slot, array("q", range(pages * TOKENS)))
        self.core.release(slot)

    def created(self) -> int:
        return self.core.usage()["created_pages"] - 1


def test_a_limit_evicts_and_gives_back_between_steps() -> None:
    world = World()
    for name in "abc":
        world.cached(name, 30)
    world.elastic.set_limit(40 * PAGE + 5)  # whole pages
    assert world.elastic.limit_bytes() == 40 * PAGE
    assert world.core.usage()["held_pages"] - 1 == 30
    assert world.created() == 90
    steps = 0
    while world.created() > 40:
        before = world.created()
        world.elastic.step()
        assert before - 64 <= world.created() < before
        steps += 1
        world.core.check()
    assert steps > 1
    world.elastic.step()
    assert world.created() == 40
    assert world.core.match("c", array("q", range(480)))[1] == 480, "the most recently used stays"
    assert pages_by_state(world.core.usage()) == {
        "free": 10,
        "pinned": 0,
        "evictable": 30,
        "withheld": 60,
        "not_created": 0,
    }
    world.elastic.set_limit(0)
    assert pages_by_state(world.core.usage())["not_created"] == 60
    world.cached("d", 70)
    world.core.check()


@pytest.mark.parametrize("limit", [-1, 1, PAGE - 1, (BUDGET + 1) * PAGE])
def test_a_limit_that_cannot_be(limit: int) -> None:
    world = World()
    with pytest.raises(ValueError, match=f"give {PAGE} .a page. to {BUDGET * PAGE}, or 0 for all"):
        world.elastic.set_limit(limit)
    assert world.elastic.limit_bytes() == BUDGET * PAGE


def test_what_requests_hold_goes_when_they_end() -> None:
    world = World()
    slot = world.core.bind(None, 0, 50 * TOKENS)[0]
    world.elastic.set_limit(20 * PAGE)
    world.elastic.step()
    assert world.created() == 50
    assert world.core.available_tokens() == 0
    world.core.release(slot)
    while world.created() > 20:
        world.elastic.step()
    world.core.check()


def test_idle_memory_goes_after_a_while() -> None:
    world = World(idle_trim_s=5.0)
    world.cached("a", 60)
    world.now_s = 4.9
    world.elastic.idle(_at_once)
    assert world.created() == 60
    world.elastic.work()
    world.now_s = 9.0
    world.elastic.idle(_at_once)
    assert world.created() == 60
    world.now_s = 9.9
    for _ in range(10):
        world.elastic.idle(_at_once)
    assert world.created() == 0
    assert world.core.physical_bytes() == PAGE
    world.cached("a", 60)
    assert world.created() == 60
    world.core.check()


def test_idle_memory_goes_back_when_the_device_has_done_all() -> None:
    """A page that was mapped ahead may be cleared as late as that."""
    world, told = World(idle_trim_s=5.0), list[str]()
    world.cached("a", 10)
    elastic = Elastic(Recorded(world.core, told), 5.0, lambda: world.now_s)
    world.now_s = 10.0
    assert elastic.idle(lambda: told.append("wait"))
    assert [it for it in told if it in ("finish_ahead", "wait", "trim")] == ["finish_ahead", "wait", "trim"]
    assert world.created() == 0


class Unsettled:
    """A core of which no page can be given back before all is done that the device was told."""

    def __init__(self, core: KVCache) -> None:
        self._core, self._done = core, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def wait(self) -> None:
        self._done = True

    def shrink(self, most_calls: int, settled: bool = False) -> int:
        assert self._done or not settled
        return self._core.shrink(most_calls) if settled else 0


def test_above_a_limit_nothing_is_left_where_nothing_runs() -> None:
    """Not even what was cleared or moved for a forward that does not come."""
    world = World()
    world.cached("a", 9)
    core = Unsettled(world.core)
    elastic = Elastic(core, 0.0, lambda: world.now_s)  # type: ignore[arg-type]
    assert not elastic.idle(core.wait)
    assert not core._done, "there is no limit, and nothing to wait for"
    elastic.set_limit(3 * PAGE)
    assert not elastic.step()
    assert elastic.idle(core.wait)
    assert world.created() == 3
    assert not elastic.idle(core.wait)


def test_above_a_limit_more_goes_at_once_where_nothing_runs() -> None:
    """So that a server which looks for requests only now and then is soon below it."""
    world = World()
    world.cached("a", 90)
    world.elastic.set_limit(PAGE)
    assert world.elastic.idle(_at_once)
    assert world.created() == 1
    assert not world.elastic.idle(_at_once)


class Told:
    """In place of metrics: how often they were told that something changed."""

    def __init__(self) -> None:
        self.times = self.updates = 0

    def changed(self) -> None:
        self.times += 1

    def idle(self) -> None:
        self.updates += self.times > 0


def test_metrics_follow_what_changes_without_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit, memory that goes back for it between steps or when nothing runs, and an idle server's trim."""
    world, told = World(idle_trim_s=5.0), Told()
    cache = object.__new__(VTensorCache)
    cache.elastic, cache.metrics, cache.core = world.elastic, told, world.core
    cache.device, cache.last_forward = torch.device("cpu"), 0
    monkeypatch.setattr(VTensorCache, "check_idle", lambda _: None)
    world.cached("a", 90)
    scheduler = SimpleNamespace(tree_cache=cache)

    def idle() -> int:
        before = told.times
        check_when_idle(lambda _: None, scheduler)
        return told.times - before

    assert idle() == 0
    settings = SimpleNamespace(server_args={MEMORY_LIMIT: 20 * PAGE})
    assert set_internal_state(lambda *_: None, scheduler, settings).updated
    assert told.times == 1
    assert (idle(), idle()) == (1, 0)
    assert world.created() == 20
    world.now_s = 6.0
    assert (idle(), idle()) == (1, 0)
    assert world.created() == 0
    assert told.updates > 0


def test_without_the_flag_idle_memory_stays() -> None:
    world = World()
    world.cached("a", 10)
    world.now_s = 1e6
    world.elastic.idle(_at_once)
    assert world.created() == 10


def test_settings_are_taken_or_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    cache = object.__new__(VTensorCache)
    cache.elastic, cache.metrics = world.elastic, None

    def tell(tree_cache: Any, **settings: float) -> Any:
        scheduler, request = SimpleNamespace(tree_cache=tree_cache), SimpleNamespace(server_args=settings)
        return set_internal_state(lambda *_: "passed on", scheduler, request)

    assert tell(cache, pp_max_micro_batch_size=8) == "passed on"
    assert tell(object(), **{MEMORY_LIMIT: 8 * PAGE}) == "passed on"
    assert tell(cache, **{MEMORY_LIMIT: 8 * PAGE}).updated
    assert world.elastic.limit_bytes() == 8 * PAGE
    for settings in (
        {MEMORY_LIMIT: 1},
        {MEMORY_LIMIT: PAGE + 0.5},
        {MEMORY_LIMIT: float("inf")},
        {MEMORY_LIMIT: float("nan")},
        {MEMORY_LIMIT: PAGE, "pp_max_micro_batch_size": 8},
    ):
        assert not tell(cache, **settings).updated
    assert world.elastic.limit_bytes() == 8 * PAGE
    assert "has to be set by itself" in caplog.text


def _memory(server: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vt_sglang", "memory", server, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _one(server: str, *arguments: str) -> dict[str, int]:
    done = _memory(server, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    found: dict[str, int] = row
    return found


def _at_once() -> None:
    """The device has done all it was told, there being none."""


def _left_tokens(server: str) -> float:
    """Tokens that SGLang's own gauges say are free or evictable, once a server without work has told of its last
    change; by itself SGLang does so every 30 seconds."""
    time.sleep(2)
    found = metrics(server)
    return found["sglang:kv_available_tokens"] + found["sglang:kv_evictable_tokens"]


@pytest.mark.slow
def test_a_server_gives_memory_back_and_takes_it_again(model: Path, tmp_path: Path) -> None:
    """By the command, beside running requests; and by itself once it has been idle."""
    draw = random.Random(1)
    prompts = [[draw.randrange(3, 250) for _ in range(600)] for _ in range(8)]
    with running(model, tmp_path, "--vtensor-idle-trim", "12") as server:
        answers = [generate(server, input_ids=prompt)["output_ids"] for prompt in prompts]
        before = _one(server)
        assert before["limit_bytes"] == before["budget_bytes"]
        assert before["cached_bytes"] > before["budget_bytes"] // 2

        with ThreadPoolExecutor(1) as pool:
            sampling = {"temperature": 0, "max_new_tokens": 100, "ignore_eos": True}
            beside = pool.submit(generate, server, input_ids=prompts[0], sampling_params=sampling)
            shrunk = _one(server, "--limit", "25%")
            assert shrunk["limit_bytes"] <= before["budget_bytes"] // 4
            assert shrunk["physical_bytes"] <= shrunk["limit_bytes"] + shrunk["page_bytes"]
            assert beside.result()["output_ids"][:8] == answers[0]
        assert _left_tokens(server) <= before["budget_bytes"] // 4 // vtensor_state(server)["token_bytes"]
        assert generate(server, input_ids=prompts[3])["output_ids"] == answers[3]

        _one(server, "--limit", "3%")
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(server, input_ids=prompts[1])
        assert refused.value.code == 503
        assert "Raise the limit" in refused.value.read().decode()
        assert generate(server, input_ids=prompts[1][:50])["meta_info"]["completion_tokens"] == 8

        assert "cannot be" in (wrong := _memory(server, "--limit", "200%")).stderr
        assert wrong.returncode == 2
        assert _one(server, "--limit", "none")["limit_bytes"] == before["budget_bytes"]
        assert [generate(server, input_ids=prompt)["output_ids"] for prompt in prompts] == answers

        end = time.monotonic() + 60
        while (now := _one(server))["physical_bytes"] > now["page_bytes"]:
            assert time.monotonic() < end
            time.sleep(0.5)
        assert now["cached_bytes"] == now["pinned_bytes"] == 0
        again = generate(server, input_ids=prompts[5])
        assert again["output_ids"] == answers[5]
        assert again["meta_info"]["cached_tokens"] == 0
        assert vtensor_state(server)["leaks"] == 0


def test_a_server_that_is_not_there() -> None:
    done = _memory("http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no server answers" in done.stderr
