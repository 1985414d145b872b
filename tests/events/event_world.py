# SPDX-License-Identifier: Apache-2.0
"""A publisher whose every message a test decides on, and a connection that can be cut."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import msgspec
import zmq

from vt_sglang.events.messages import AllBlocksCleared, BlockRemoved, BlockStored
from vt_sglang.events.subscriber import Subscriber
from vt_sglang.events.view import View

CLEARED = AllBlocksCleared()


def stored(name: int, parent: int | None = None, size: int = 2, medium: str | None = "GPU") -> BlockStored:
    """One block, whose tokens are made of its name."""
    return BlockStored([name], parent, [name * 10 + i for i in range(size)], size, None, medium)


def removed(*names: int, medium: str | None = "GPU") -> BlockRemoved:
    return BlockRemoved(list(names), medium)


def wait_until(said: Callable[[], bool], seconds: float = 20.0) -> None:
    """AssertionError if it does not become true."""
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, "it did not come to that"


def follow(subscriber: Subscriber, view: View, until: Callable[[], bool], seconds: float = 20.0) -> list[Any]:
    """Take in updates until a condition holds; all of them."""
    updates: list[Any] = []

    def look() -> bool:
        for update in subscriber.poll(0.02):
            view.update(update)
            updates.append(update)
        return until()

    wait_until(look, seconds)
    return updates


class FakePublisher:
    """Publishes by SGLang's protocol, and drops what it is told to."""

    def __init__(self, port: int = 0, replay_port: int = 0, keep: int = 10_000) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.bind(f"tcp://127.0.0.1:{port or '*'}")
        self._replay = self._context.socket(zmq.ROUTER)
        self._replay.set_hwm(0)
        self._replay.bind(f"tcp://127.0.0.1:{replay_port or '*'}")
        self.endpoint = self._pub.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = self._replay.getsockopt_string(zmq.LAST_ENDPOINT)
        self.kept: list[tuple[int, bytes]] = []
        self.asked: list[int] = []
        self.lossy_replay = 0  # so many messages of the next answer are sent, the end not among them
        self._keep = keep
        self._sequence = 0
        self._is_open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def ports(self) -> tuple[int, int]:
        return int(self.endpoint.rsplit(":", 1)[1]), int(self.replay_endpoint.rsplit(":", 1)[1])

    def close(self) -> None:
        self._is_open = False
        self._thread.join()
        self._context.destroy(linger=0)

    def publish(self, *events: Any, drop: bool = False) -> None:
        """Number a batch and keep it; send it unless it is to get lost."""
        payload = msgspec.msgpack.encode([time.time(), list(events), 0])
        if not drop:
            self.send(self._sequence, payload)
        self.kept = [*self.kept, (self._sequence, payload)][-self._keep :]
        self._sequence += 1

    def send(self, sequence: int, payload: bytes) -> None:
        self._pub.send_multipart((b"", sequence.to_bytes(8, "big"), payload))

    def _serve(self) -> None:
        while self._is_open:
            if not self._replay.poll(20):
                continue
            who, _, first = self._replay.recv_multipart()
            start = int.from_bytes(first, "big")
            self.asked.append(start)
            answers = [(number, payload) for number, payload in self.kept if number >= start]
            if (limit := self.lossy_replay) > 0:
                self.lossy_replay = 0
                answers = answers[:limit]
            for number, payload in answers:
                self._replay.send_multipart((who, b"", number.to_bytes(8, "big"), payload))
            if limit == 0:
                self._replay.send_multipart((who, b"", (-1).to_bytes(8, "big", signed=True), b""))


class Cable:
    """A TCP connection to a port of this machine, by way of another port, that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._ends: list[socket.socket] = []
        self._is_cut = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and let none come about."""
        self._is_cut = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends = []

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self._is_cut:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.port))
                except OSError:
                    near.close()
                    continue
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
