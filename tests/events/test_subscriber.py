# SPDX-License-Identifier: Apache-2.0
"""Each batch once and in order, whatever the connection does."""

import time
from collections.abc import Iterator

import pytest
from event_world import CLEARED, Cable, FakePublisher, follow, removed, stored, wait_until

from vt_sglang.events import subscriber as module
from vt_sglang.events.messages import Batch, Missed, Restarted
from vt_sglang.events.subscriber import Subscriber
from vt_sglang.events.view import View


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_CHECK_S", 0.2)
    monkeypatch.setattr(module, "_ASK_AGAIN_S", 0.2)


@pytest.fixture
def view() -> View:
    return View()


@pytest.fixture
def listening(publisher: FakePublisher) -> Iterator[Subscriber]:
    with Subscriber(publisher.endpoint, publisher.replay_endpoint) as made:
        follow(made, View(), lambda: made.connected and bool(publisher.asked))
        yield made


@pytest.fixture
def deaf(publisher: FakePublisher) -> Iterator[Subscriber]:
    """Without a replay endpoint."""
    with Subscriber(publisher.endpoint) as made:
        follow(made, View(), lambda: made.connected)
        time.sleep(0.1)  # until the publisher has taken the subscription
        yield made


def test_batches_come_as_they_are_published(publisher: FakePublisher, listening: Subscriber, view: View) -> None:
    for name in range(1, 6):
        publisher.publish(stored(name))
    updates = follow(listening, view, lambda: len(view.blocks) == 5)
    assert [update.sequence for update in updates] == [0, 1, 2, 3, 4]
    assert (listening.statistics.gaps, listening.statistics.missed) == (0, 0)


def test_a_late_joiner_asks_for_what_was(publisher: FakePublisher, view: View) -> None:
    publisher.publish(CLEARED, stored(1), stored(2))
    publisher.publish(removed(1))
    with Subscriber(publisher.endpoint, publisher.replay_endpoint) as late:
        follow(late, view, lambda: late.statistics.batches == 2)
        publisher.publish(stored(3))
        follow(late, view, lambda: late.statistics.batches == 3)
    assert set(view.blocks) == {2, 3}
    assert not view.partial
    assert late.statistics.replayed >= 2


def test_a_late_joiner_is_told_what_is_kept_no_more(view: View) -> None:
    with FakePublisher(keep=2) as publisher:
        for name in range(1, 6):
            publisher.publish(stored(name))
        with Subscriber(publisher.endpoint, publisher.replay_endpoint) as late:
            updates = follow(late, view, lambda: len(view.blocks) == 2)
            assert updates[0] == Missed(0, 3)
            assert view.partial
            publisher.publish(CLEARED, stored(9))
            follow(late, view, lambda: set(view.blocks) == {9})
            assert not view.partial


def test_without_replay_what_is_lost_is_said(publisher: FakePublisher, deaf: Subscriber, view: View) -> None:
    publisher.publish(stored(1))
    publisher.publish(stored(2), drop=True)
    publisher.publish(stored(3))
    updates = follow(deaf, view, lambda: 3 in view.blocks)
    assert Missed(1, 2) in updates
    assert view.partial
    assert (deaf.statistics.gaps, deaf.statistics.missed) == (1, 1)


def test_a_gap_is_filled_in_order(publisher: FakePublisher, listening: Subscriber, view: View) -> None:
    publisher.publish(stored(1))
    publisher.publish(removed(1), drop=True)
    publisher.publish(stored(1, 7), drop=True)
    publisher.publish(stored(2, 1))
    updates = follow(listening, view, lambda: 2 in view.blocks)
    assert [update.sequence for update in updates] == [0, 1, 2, 3]
    assert view.blocks[1].parent == 7
    assert (listening.statistics.gaps, listening.statistics.missed, view.partial) == (1, 0, False)


def test_a_last_message_that_is_lost_is_found_when_nothing_follows(
    publisher: FakePublisher, listening: Subscriber, view: View
) -> None:
    publisher.publish(stored(1))
    follow(listening, view, lambda: 1 in view.blocks)
    publisher.publish(stored(2), drop=True)
    follow(listening, view, lambda: 2 in view.blocks)
    assert listening.statistics.messages == 1


def test_idle_checks_that_find_nothing_are_no_replays(publisher: FakePublisher, listening: Subscriber) -> None:
    asked = len(publisher.asked)
    follow(listening, View(), lambda: len(publisher.asked) >= asked + 2)
    assert listening.statistics.replays == 1, "that after connecting"
    publisher.publish(stored(1), drop=True)
    follow(listening, View(), lambda: listening.statistics.replayed == 1)
    assert listening.statistics.replays == 2


def test_an_answer_that_breaks_off_is_asked_for_again(publisher: FakePublisher, view: View) -> None:
    """As SGLang's publisher drops what does not fit into its queue."""
    for name in range(1, 21):
        publisher.publish(stored(name))
    publisher.lossy_replay = 7
    with Subscriber(publisher.endpoint, publisher.replay_endpoint, replay_timeout_s=0.2) as late:
        follow(late, view, lambda: len(view.blocks) == 20)
    assert publisher.asked[:2] == [0, 7]
    assert not view.partial


def test_duplicates_are_dropped(publisher: FakePublisher, listening: Subscriber, view: View) -> None:
    publisher.publish(stored(1))
    publisher.publish(stored(2))
    for number, payload in publisher.kept:
        publisher.send(number, payload)
    publisher.publish(stored(3))
    updates = follow(listening, view, lambda: 3 in view.blocks)
    assert [update.sequence for update in updates] == [0, 1, 2]
    assert listening.statistics.duplicates == 2
    assert view.changes.stored_again == 0


def test_what_is_no_batch_is_counted(publisher: FakePublisher, deaf: Subscriber, view: View) -> None:
    publisher.send(0, b"\xc1 no msgpack")
    publisher.publish(stored(1))
    follow(deaf, view, lambda: 1 in view.blocks)
    assert deaf.statistics.undecodable == 1


def test_a_cut_connection_is_caught_up_with(publisher: FakePublisher, view: View) -> None:
    """Nothing more is published afterwards: what was missed is asked for because the connection is new."""
    cable = Cable(publisher.ports[0])
    with Subscriber(cable.endpoint, publisher.replay_endpoint) as cut:
        publisher.publish(CLEARED, stored(1))
        follow(cut, view, lambda: 1 in view.blocks)
        cable.cut()
        follow(cut, view, lambda: not cut.connected)
        publisher.publish(stored(2))
        publisher.publish(removed(1))
        cable.mend()
        follow(cut, view, lambda: set(view.blocks) == {2})
        assert (cut.statistics.connections, cut.statistics.restarts, cut.statistics.missed) == (2, 0, 0)
    cable.close()


@pytest.mark.parametrize("batches", [1, 2, 3, 6])
def test_a_publisher_started_anew_is_another(view: View, batches: int) -> None:
    """Whether its numbers are behind the old one's, as far, or further."""
    old = FakePublisher()
    ports = old.ports
    with Subscriber(old.endpoint, old.replay_endpoint) as watching:
        for name in (1, 2, 3):
            old.publish(stored(name))
        follow(watching, view, lambda: len(view.blocks) == 3)
        old.close()
        with FakePublisher(*ports) as new:
            for name in range(11, 11 + batches):
                new.publish(stored(name))
            updates = follow(watching, view, lambda: set(view.blocks) == set(range(11, 11 + batches)))
            new.publish(stored(99))
            follow(watching, view, lambda: 99 in view.blocks)
    assert [type(update) for update in updates] == [Restarted, *[Batch] * batches]
    assert watching.statistics.restarts == 1
    assert not view.partial


def test_a_publisher_started_anew_is_seen_without_replay(view: View) -> None:
    old = FakePublisher()
    ports = old.ports
    with Subscriber(old.endpoint) as watching:
        follow(watching, view, lambda: watching.connected)
        time.sleep(0.1)
        old.publish(stored(1))
        old.publish(stored(2))
        follow(watching, view, lambda: len(view.blocks) == 2)
        old.close()
        with FakePublisher(*ports) as new:
            follow(watching, view, lambda: watching.statistics.connections == 2)
            time.sleep(0.1)
            new.publish(CLEARED, stored(9))
            updates = follow(watching, view, lambda: 9 in view.blocks)
    assert isinstance(updates[0], Restarted)
    assert set(view.blocks) == {9}


def test_a_replay_endpoint_that_is_silent_delays_but_does_not_stop(view: View) -> None:
    import socket

    with FakePublisher() as publisher, socket.create_server(("127.0.0.1", 0)) as silent:
        replay = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        publisher.publish(stored(1))
        with Subscriber(publisher.endpoint, replay, replay_timeout_s=0.1) as watching:
            follow(watching, view, lambda: watching.connected)
            time.sleep(0.1)
            publisher.publish(stored(2))
            updates = follow(watching, view, lambda: 2 in view.blocks)
    assert Missed(0, 1) in updates
    assert view.partial


def test_it_waits_for_a_publisher_that_is_not_there_yet(view: View) -> None:
    with FakePublisher() as gone:
        ports, endpoint, replay = gone.ports, gone.endpoint, gone.replay_endpoint
    with Subscriber(endpoint, replay, replay_timeout_s=0.2) as early:
        assert early.poll(0.1) == []
        assert not early.connected
        with FakePublisher(*ports) as publisher:
            publisher.publish(stored(1))
            follow(early, view, lambda: 1 in view.blocks)


def test_no_endpoint_of_zeromq() -> None:
    with pytest.raises(ValueError, match="no endpoints"):
        Subscriber("tcp://127.0.0.1:notaport")
    with pytest.raises(ValueError, match="no endpoints"):
        Subscriber("tcp://127.0.0.1:5557", "nonsense")


def test_a_stream_can_be_left_at_any_time(publisher: FakePublisher) -> None:
    left = Subscriber(publisher.endpoint, publisher.replay_endpoint)
    wait_until(lambda: not left.poll(0.01) and left.connected)
    left.close()
