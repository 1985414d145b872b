# SPDX-License-Identifier: Apache-2.0
"""What the tests of mapping ahead share."""

import threading
import time
from collections.abc import Callable

from core_fake_cuda import FakeCuda
from core_harness import Request, ids, run

from vt_sglang._core import KVCache

TOKEN = 1024  # bytes: four tokens a page
SYSTEM = "sssstttteeeemmmm"
"""A prefix of four pages."""
DEADLINE_S = 20  # less than fake_cuda.c holds a call
LONG_ENOUGH_S = 0.05
"""For a thread that does not wait to come to its end."""


def make(fake_cuda: FakeCuda, **sizes: object) -> KVCache:
    """A cache that maps ahead, 40 pages, 5 slots for requests."""
    return fake_cuda.cache(
        TOKEN,
        **({"slots": 6, "slot_tokens": 64, "budget_pages": 40, "move_pages": True, "map_ahead": True} | sizes),
    )


def make_full(fake_cuda: FakeCuda) -> tuple[KVCache, Request]:
    """A cache with 15 free pages that were in use before, so that taking one takes no call but its mapping; and a
    request in the slot that maps them still."""
    cache = make(fake_cuda)
    run(cache, ids("-" * 64), "before")
    cache.evict(100)
    occupant = Request(cache, ids("oooo"))
    cache.finish_ahead()
    assert cache.usage()["free_pages"] == 15
    return cache, occupant


def started(cache: KVCache, namespace: str | None = None) -> Request:
    """A request of two full pages, behind which the next is mapped ahead."""
    request = Request(cache, ids("aaaa"), namespace=namespace)
    for letter in "bbbb":
        cache.finish_ahead()
        request.append(ids(letter))
    cache.finish_ahead()
    return request


def pair(cache: KVCache, *, apart: bool = False) -> list[Request]:
    """Two live requests that begin with SYSTEM, the first of them recorded. Once the second is, the prefix branches.

    Args:
        apart: the second does not find the prefix, as both compute it at the same time, each in pages of its own.
    """
    first = Request(cache, ids(SYSTEM + "a"))
    if not apart:
        first.record()
    second = Request(cache, ids(SYSTEM + "b"))
    if apart:
        first.record()
    assert (first.matched, second.matched) == (0, 0 if apart else len(SYSTEM))
    return [first, second]


def shared(cache: KVCache, *, apart: bool = False) -> list[Request]:
    """A pair whose prefix branches, since both are recorded."""
    requests = pair(cache, apart=apart)
    requests[1].record()
    return requests


def give_everything_back(cache: KVCache) -> None:
    """No request being left, nothing is held but the padding page, whatever was mapped ahead."""
    cache.evict(100)
    assert cache.usage()["held_pages"] == 1
    cache.trim()
    assert cache.usage()["created_pages"] == 1
    cache.finish_ahead()
    cache.check()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.001)


class Waiter:
    """A thread that makes one call which must wait until it is let go.

    Args:
        call: what it does.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._begun, self._let_go = threading.Event(), threading.Event()
        self._seen: list[bool] = []  # whether the call ended after the release
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(DEADLINE_S)
        time.sleep(LONG_ENOUGH_S)
        assert self.waits(), "it did not wait"

    def _run(self) -> None:
        self._begun.set()
        self._call()
        self._seen.append(self._let_go.is_set())

    def waits(self) -> bool:
        """Whether its call has not ended."""
        return self._thread.is_alive()

    def end(self, release: Callable[[], object]) -> None:
        """Let it go by `release`, and wait for its end. AssertionError if it had ended before, or does not end."""
        self._let_go.set()
        release()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "it does not end"
        assert self._seen == [True], "it did not wait, or failed"
