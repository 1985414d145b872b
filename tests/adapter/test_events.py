# SPDX-License-Identifier: Apache-2.0
"""A view rebuilt from the events is the tree, whatever happened between; and stock SGLang names the same blocks."""

import atexit
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import zmq
from event_traffic import Traffic, make_cache, names_in, names_of

from vt_sglang.events.messages import Batch, decode
from vt_sglang.events.subscriber import Subscriber
from vt_sglang.events.view import View

sys.path.insert(0, str(Path(__file__).parents[1] / "events"))

from event_world import Cable, follow

pytestmark = pytest.mark.usefixtures("plugged")


def _batch(events: list[Any], number: int = 0) -> Batch:
    """Events as they come out of the wire."""
    from sglang.srt.disaggregation.kv_events import KVEventBatch

    return decode(number, msgspec.msgpack.encode(KVEventBatch(ts=0.0, events=events)))


def _check(view: View, traffic: Traffic, block_tokens: int) -> None:
    """The view holds the blocks that the tree holds, and each has the tokens that its name says."""
    assert set(view.blocks) == names_in(traffic.cache.core)
    assert not view.partial
    assert view.orphans() == 0
    for name in view.blocks:
        path = view.path(name)
        assert len(path) % block_tokens == 0
        assert name in {names_of(namespace, path, block_tokens)[-1] for namespace in traffic.namespaces}


@pytest.mark.parametrize(("seed", "block_tokens"), [(1, 1), (2, 4), (3, 7), (4, 16), (5, 64), (6, 4), (7, 16)])
def test_the_view_is_the_tree_whenever_one_looks(seed: int, block_tokens: int) -> None:
    traffic, looks = Traffic(make_cache(block_tokens), random.Random(seed)), random.Random(seed)
    view = View()
    for _ in range(800):
        traffic.step()
        if looks.random() < 0.7:
            continue  # what is evicted and stored again in between must be told in this order
        view.update(_batch(traffic.cache.take_events()))
        assert set(view.blocks) == names_in(traffic.cache.core)
    view.update(_batch(traffic.cache.take_events()))
    _check(view, traffic, block_tokens)
    traffic.cache.core.check()
    assert view.changes.stored_again == view.changes.removed_unknown == 0
    assert min(view.changes.stored, view.changes.removed, view.changes.cleared - 1) > 0
    traffic.end_all()
    traffic.cache.core.evict(10_000)
    view.update(_batch(traffic.cache.take_events()))
    assert view.blocks == {}


@contextmanager
def _published(endpoint: str = "tcp://127.0.0.1:*", replay: str = "tcp://127.0.0.1:*", **options: Any) -> Iterator[Any]:
    """The publisher of a server, as its scheduler makes it."""
    from vt_sglang.adapter.event_publisher import VTensorEventPublisher

    deadline = time.monotonic() + 10
    while True:
        try:
            made = VTensorEventPublisher(0, endpoint, replay, **options)
            break
        except RuntimeError:  # ZeroMQ closes the port of the one before some time after it was told to
            assert time.monotonic() < deadline
    made.address = made._pub.getsockopt_string(zmq.LAST_ENDPOINT)
    made.replay_address = made._replay.getsockopt_string(zmq.LAST_ENDPOINT)
    try:
        yield made
    finally:
        made.shutdown()
        atexit.unregister(made.shutdown)


def _publish(publisher: Any, cache: Any) -> None:
    """As SchedulerKvEventsPublisher does."""
    from sglang.srt.managers.scheduler_components.kv_events_publisher import SchedulerKvEventsPublisher

    SchedulerKvEventsPublisher.publish_kv_events(
        SimpleNamespace(enable_kv_cache_events=True, tree_cache=cache, kv_event_publisher=publisher)
    )


def _play(traffic: Traffic, publisher: Any, steps: int) -> None:
    for _ in range(steps):
        traffic.step()
        _publish(publisher, traffic.cache)


def _settle(subscriber: Subscriber, view: View, traffic: Traffic) -> None:
    """Until the view has what the tree has."""
    follow(subscriber, view, lambda: set(view.blocks) == names_in(traffic.cache.core))


def test_the_view_survives_what_a_network_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live, with the connection cut in the middle, joined late, and with the server started anew."""
    monkeypatch.setattr("vt_sglang.events.subscriber.IDLE_CHECK_S", 0.3)
    traffic = Traffic(make_cache(4), random.Random(11))
    view, late_view = View(), View()
    with ExitStack() as first:
        publisher = first.enter_context(_published())
        cable = first.enter_context(closing(Cable(int(publisher.address.rsplit(":", 1)[1]))))
        with Subscriber(cable.endpoint, publisher.replay_address) as watching:
            _play(traffic, publisher, 150)
            _settle(watching, view, traffic)
            _check(view, traffic, 4)

            cable.cut()
            follow(watching, view, lambda: not watching.connected)
            _play(traffic, publisher, 150)
            assert set(view.blocks) != names_in(traffic.cache.core)
            cable.mend()
            _play(traffic, publisher, 50)
            _settle(watching, view, traffic)
            _check(view, traffic, 4)
            assert watching.statistics.connections == 2
            assert watching.statistics.replayed > 0

        with Subscriber(publisher.address, publisher.replay_address) as late:
            _play(traffic, publisher, 50)
            _settle(late, late_view, traffic)
            _check(late_view, traffic, 4)

            first.close()
            anew = Traffic(make_cache(4), random.Random(12))
            with _published(publisher.address, publisher.replay_address) as second:
                _play(anew, second, 100)
                _settle(late, late_view, anew)
                _check(late_view, anew, 4)
    for stream in (watching.statistics, late.statistics):
        assert (stream.missed, stream.undecodable) == (0, 0)
    assert (watching.statistics.restarts, late.statistics.restarts) == (0, 1)
    assert late_view.changes.stored_again == late_view.changes.removed_unknown == 0
    assert view.changes.stored_again == view.changes.removed_unknown == 0


def test_a_view_that_lacks_events_is_whole_again_after_a_flush() -> None:
    """The publisher keeps too little for one who comes late."""
    traffic = Traffic(make_cache(4), random.Random(13), clears=False)
    view = View()
    with _published(buffer_steps=5) as publisher:
        _play(traffic, publisher, 100)
        with Subscriber(publisher.address, publisher.replay_address) as late:
            follow(late, view, lambda: late.statistics.batches > 0)
            assert view.partial
            traffic.flush()
            _play(traffic, publisher, 50)
            _settle(late, view, traffic)
            _check(view, traffic, 4)


def _page_hashes(key: Any, before: bytes | None, page_size: int) -> list[str]:
    """As `get_native_hash` of SGLang 0.5.17."""
    found, digest = [], before or b""
    for start in range(0, len(key), page_size):
        page = struct.pack(f"<{page_size}I", *key.token_ids[start : start + page_size])
        digest = sha256(digest + page).digest()
        found.append(digest.hex())
    return found


@pytest.mark.parametrize("block_tokens", [1, 4, 16])
def test_stock_sglang_stores_the_same_blocks(block_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its radix cache, with pages of the size of a block and given the same sequences, publishes the same blocks.

    Its hash function, which takes a compiler and half a minute to build, is written out here; what the built one gives
    stands in tests/events/test_hashing.py.
    """
    from array import array

    from sglang.srt.mem_cache.base_prefix_cache import InsertParams
    from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

    monkeypatch.setattr("sglang.srt.mem_cache.utils.get_native_hash", _page_hashes)
    traffic = Traffic(make_cache(block_tokens, pages=4000), random.Random(21), namespaces=(None,), clears=False)
    while len(traffic.recorded) < 150:
        traffic.start() if len(traffic.live) < 4 else traffic.end(traffic.random.choice(traffic.live))
        if traffic.live:
            traffic.go_on(traffic.random.choice(traffic.live))
    stock = RadixCache.create_simulated(page_size=block_tokens, enable_kv_cache_events=True)
    for _, tokens in traffic.recorded:
        key = RadixKey(array("q", tokens)).page_aligned(block_tokens)
        if len(key):
            stock.insert(InsertParams(key=key, value=torch.zeros(len(key), dtype=torch.int64)))

    def told(events: list[Any]) -> Counter[Any]:
        first, *rest = _batch(events).events
        assert type(first).__name__ == "AllBlocksCleared"
        return Counter(msgspec.json.encode(event) for event in rest)

    ours, theirs = told(traffic.cache.take_events()), told(stock.take_events())
    assert len(theirs) > 50
    assert ours == theirs


def test_two_requests_that_record_the_same_store_it_once() -> None:
    traffic = Traffic(make_cache(4), random.Random(31), namespaces=(None,))
    traffic._prompt = lambda: (None, list(range(30)))  # type: ignore[method-assign]
    for _ in range(3):
        traffic.start()  # side by side: the second and third have pages of their own for the last token
    traffic.end_all()
    view = View()
    view.update(_batch(traffic.cache.take_events()))
    assert list(view.blocks) == names_of(None, list(range(30)), 4)
    assert view.changes.stored_again == 0


def test_without_events_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: Any) -> None:
        raise AssertionError("hashed a block")

    monkeypatch.setattr("vt_sglang.adapter.events.block_digests", never)
    traffic = Traffic(make_cache(0), random.Random(41))
    for _ in range(100):
        traffic.step()
    assert traffic.cache.take_events() == []
