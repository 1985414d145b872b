# SPDX-License-Identifier: Apache-2.0
"""What `vt-sglang watch --events` shows."""

import io
import os
import signal
import threading

import pytest
from event_world import CLEARED, FakePublisher, stored, wait_until
from rich.console import Console

from vt_sglang.events import subscriber
from vt_sglang.events.subscriber import Subscriber
from vt_sglang.events.watch import Watched, connectable, watch_events


def _console(is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100, height=40)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_contents_of_the_cache_are_shown(publisher: FakePublisher, is_terminal: bool) -> None:
    console = _console(is_terminal)
    publisher.publish(CLEARED, stored(1, size=64), stored(2, 1, size=64), stored(3, 1, size=64), stored(4, size=64))
    status = watch_events(
        publisher.endpoint,
        publisher.replay_endpoint,
        console,
        refresh_s=0.1,
        is_over=lambda view: len(view.blocks) == 4,
    )
    assert status == 0
    shown = _shown(console)
    if is_terminal:
        assert "complete" in shown
        assert "256" in shown  # tokens
        assert "0-64" in shown  # the first block, with two below it
        assert "75.0%" in shown
    else:
        assert "complete | events/s" in shown
        assert "blocks 4 tokens 256 roots 2 deepest 128 | cleared 1 gaps 0" in shown
        assert shown.count("\n") < 60


def test_nothing_there_is_said() -> None:
    with FakePublisher() as gone:
        endpoint = gone.endpoint
    console = _console(False)
    seen: list[int] = []
    assert (
        watch_events(
            endpoint, None, console, refresh_s=0.05, is_over=lambda _view: len(seen) > 0 or seen.append(1) or False
        )
        == 0
    )
    assert _shown(console).startswith("not connected | events/s 0")


def test_nothing_is_complete_before_the_replay_endpoint_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "_ASK_AGAIN_S", 0.1)
    old = FakePublisher()
    port, replay_port = old.ports
    with Subscriber(old.endpoint, old.replay_endpoint, replay_timeout_s=0.2) as stream:
        watched = Watched(stream, old.endpoint)

        def says(words: str) -> bool:
            watched.collect(0.05)
            return watched.line().startswith(words)

        old.publish(CLEARED, stored(1))
        wait_until(lambda: says("complete") and "blocks 1 " in watched.line())
        old.close()
        wait_until(lambda: says("connection lost"))
        with FakePublisher(port):  # the server is back, its replay endpoint is not
            wait_until(lambda: not says("connection lost"))
            assert says("waiting for the replay endpoint")
            with FakePublisher(0, replay_port):  # it says that this server has published nothing yet
                wait_until(lambda: says("complete"))
                assert "blocks 0 " in watched.line()
                assert "restarts 1" in watched.line()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_ctrl_c_ends_it(publisher: FakePublisher, is_terminal: bool) -> None:
    console = _console(is_terminal)
    publisher.publish(stored(1))

    def interrupt() -> None:
        wait_until(lambda: "complete" in _shown(console))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert watch_events(publisher.endpoint, publisher.replay_endpoint, console, refresh_s=0.05) == 0


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:30000", "tcp://127.0.0.1", "5557", "tcp://:x"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    console = _console(False)
    assert watch_events(endpoint, None, console) == 2
    assert "write for example tcp://127.0.0.1:5557" in _shown(console)
    assert _shown(console).count("\n") == 1


def test_a_servers_own_endpoint_is_taken_for_this_machine() -> None:
    assert connectable("tcp://*:5557") == connectable("tcp://0.0.0.0:5557") == "tcp://127.0.0.1:5557"
    assert connectable("tcp://10.1.2.3:5557") == "tcp://10.1.2.3:5557"


@pytest.mark.parametrize("endpoint", ["foo", "tcp://127.0.0.1", "tcp://127.0.0.1:65536", "http://127.0.0.1:5557"])
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"no endpoint|ports go up to"):
        connectable(endpoint)
