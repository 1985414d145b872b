# SPDX-License-Identifier: Apache-2.0
"""Many threads at once: methods let go of the GIL and take one lock, so nothing hangs and nothing is lost."""

import random
import threading
import time
from collections.abc import Callable

from core_fake_cuda import FakeCuda
from core_harness import MakeCache, Request, ids, ledger

from vt_sglang._core import InvariantError, KVCache, OutOfPages, SlotsBusy

SECONDS_UNTIL_DEADLOCK = 60


def run_threads(work: list[Callable[[], None]]) -> None:
    """Runs all, and fails if one raises or does not come to an end."""
    errors: list[BaseException] = []

    def guard(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(function,), daemon=True) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS_UNTIL_DEADLOCK)
        assert not thread.is_alive(), "deadlock"
    assert not errors, errors


def converse(cache: KVCache, seed: int, turns: int) -> None:
    """Conversations in a namespace of the thread's own or a common one."""
    choice = random.Random(seed)
    for _ in range(turns):
        namespace = choice.choice([None, f"thread {seed}"])
        text = "system prompt"[: choice.randrange(14)] + "".join(choice.choices("ab", k=choice.randrange(1, 12)))
        try:
            request = Request(cache, ids(text), namespace=namespace)
        except (OutOfPages, SlotsBusy, ValueError):
            continue
        except InvariantError as error:
            if "it was evicted" not in str(error):  # by another thread, between match and lock
                raise
            continue
        try:
            request.append(ids("ab"))
        except OutOfPages:
            request.ids = request.ids[:-2]
        request.verify()
        if choice.random() < 0.5:
            request.finish()
        else:
            request.abort()


def administrate(cache: KVCache, seed: int, rounds: int) -> None:
    """What a scheduler, a metrics page and an idle loop ask for."""
    choice = random.Random(seed)
    actions: list[Callable[[], object]] = [
        cache.usage,
        cache.counters,
        cache.available_tokens,
        cache.evictable_tokens,
        cache.protected_tokens,
        cache.physical_bytes,
        cache.check,
        lambda: cache.evict(choice.randrange(4)),
        lambda: cache.trim(choice.randrange(4)),
        lambda: cache.match(None, ids("system prompt")),
        lambda: cache.complete_forward(cache.begin_forward(ids(""))),  # type: ignore[arg-type]
    ]
    for _ in range(rounds):
        choice.choice(actions)()


def test_requests_and_administration_at_once(make_cache: MakeCache) -> None:
    cache = make_cache(1000, slots=6, budget_pages=24)
    run_threads(
        [lambda seed=seed: converse(cache, seed, 150) for seed in range(6)]
        + [lambda seed=seed: administrate(cache, seed, 400) for seed in range(3)]
    )
    cache.check()
    usage = cache.usage()
    assert (usage["live_slots"], usage["live_tokens"]) == (0, 0)
    assert usage["evictable_pages"] == usage["held_pages"] - 1, "every lock was given back"
    assert ledger(cache) == cache.total_tokens
    assert cache.counters()["binds"] > 100
    cache.clear()


def test_a_call_of_the_driver_holds_up_neither_the_interpreter_nor_other_caches(fake_cuda: FakeCuda) -> None:
    """While a bind waits in the driver, and another thread for that cache's lock, Python goes on: the GIL is free."""
    busy, other = fake_cuda.cache(), fake_cuda.cache()
    fake_cuda.hold("cuMemCreate")
    binder = threading.Thread(target=lambda: busy.release(busy.bind(None, 0, 4)[0]), daemon=True)
    reader = threading.Thread(target=busy.usage, daemon=True)
    deadline = time.monotonic() + SECONDS_UNTIL_DEADLOCK
    binder.start()
    while not fake_cuda.waiting():
        assert binder.is_alive(), "the bind ran to its end before this thread could look"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    reader.start()
    assert other.usage()["live_slots"] == 0
    assert binder.is_alive()
    assert reader.is_alive(), "the cache's lock is held"
    fake_cuda.hold(None)
    for thread in binder, reader:
        thread.join(SECONDS_UNTIL_DEADLOCK)
        assert not thread.is_alive()
    assert busy.counters()["binds"] == 1


def test_threads_of_one_cache_do_not_wait_for_another(make_cache: MakeCache) -> None:
    """Each cache has a lock of its own."""
    caches = [make_cache() for _ in range(3)]
    run_threads([lambda cache=cache, seed=seed: converse(cache, seed, 60) for seed, cache in enumerate(caches * 2)])
    for cache in caches:
        assert ledger(cache) == cache.total_tokens


def test_requests_while_a_thread_maps_ahead(fake_cuda: FakeCuda, make_cache: MakeCache) -> None:
    """It calls the driver beside them; on the fake device two calls at once would be seen as broken rules."""
    sizes: dict[str, object] = {"slots": 6, "budget_pages": 24, "map_ahead": True}
    for cache in make_cache(1000, **sizes), fake_cuda.cache(1000, **sizes, move_pages=True):
        fake_cuda.delay(200)
        run_threads(
            [lambda cache=cache, seed=seed: converse(cache, seed, 60) for seed in range(4)]
            + [lambda cache=cache, seed=seed: administrate(cache, seed, 150) for seed in range(2)]
            + [lambda cache=cache: [cache.finish_ahead() for _ in range(50)]]
        )
        cache.finish_ahead()
        cache.check()
        assert cache.usage()["live_slots"] == 0
        assert ledger(cache) == cache.total_tokens
        assert cache.counters()["pages_mapped_ahead"] > 0
