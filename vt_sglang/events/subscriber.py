# SPDX-License-Identifier: Apache-2.0
"""A subscriber that hands out a publisher's batches in order, each once, and says so where it cannot.

What is known of the publisher is the number and the time of the last batch handed out. A message with the next number
follows on it. One with a later number leaves a gap, which the replay endpoint fills. One with an earlier number came
before, if its time is no later; else the publisher was started anew. A new publisher whose numbers have come as far as
the old one's is known by its batch of the last number, which is asked for after each reconnection and in each gap: that
has another time.
"""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from vt_sglang.events.messages import Batch, Missed, Restarted, Update, decode
from vt_sglang.events.replay import fetch

IDLE_CHECK_S = 2.0
"""After so long without a message the replay endpoint is asked for one: the last may have been dropped."""

_ASK_AGAIN_S = 5.0
"""After so long, if the replay endpoint did not answer."""

_QUEUE = 100_000
"""Messages that wait for a slow consumer; what does not fit is a gap."""


@dataclass
class Statistics:
    """What happened to the stream so far."""

    messages: int = 0
    batches: int = 0
    replays: int = 0
    """Answers of the replay endpoint where something was missing, or might have been; idle checks that found nothing
    aside."""
    replayed: int = 0
    gaps: int = 0
    missed: int = 0
    duplicates: int = 0
    restarts: int = 0
    connections: int = 0
    disconnections: int = 0
    undecodable: int = 0


class Subscriber:
    """Subscribes to one publisher; a context manager. Not for more than one thread.

    Args:
        endpoint: of the publisher, `tcp://HOST:PORT`.
        replay: its replay endpoint. Without one a gap cannot be filled, and what came before cannot be had.
        topic: prefix of the topics to take.
        replay_timeout_s: how long an answer of the replay endpoint is awaited.

    Raises:
        ValueError: an endpoint that ZeroMQ does not take.
    """

    def __init__(
        self, endpoint: str, replay: str | None = None, *, topic: str = "", replay_timeout_s: float = 3.0
    ) -> None:
        self.statistics = Statistics()
        self.connected = False
        self._endpoint, self._replay, self._timeout_s = endpoint, replay, replay_timeout_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._next = 0  # number of the batch that is to be handed out next
        self._last_time_s: float | None = None  # of the batch before that; None before the first
        self._doubtful = True  # the stream may have gone on unseen: ask the replay endpoint
        self._last_news = time.monotonic()
        self._ask_after = 0.0
        try:
            self._socket = self._context.socket(zmq.SUB)
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            self._socket.set_hwm(_QUEUE)
            self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
            self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
            self._socket.connect(endpoint)
            if replay is not None:
                with self._context.socket(zmq.DEALER) as probe:  # to find now what is no endpoint
                    probe.setsockopt(zmq.LINGER, 0)
                    probe.connect(replay)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ValueError(f"{endpoint} and {replay}: no endpoints of ZeroMQ ({error.strerror})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all sockets."""
        self._socket.disable_monitor()
        self._context.destroy(linger=0)

    @property
    def is_checking(self) -> bool:
        """Whether the replay endpoint has yet to say what was missed: before its first answer, and after a
        reconnection, which may be one to another publisher."""
        return self._replay is not None and self._doubtful

    def poll(self, timeout_s: float, most: int = 1000) -> list[Update]:
        """What came, after waiting `timeout_s` seconds for it at the longest (and for a replay, if one is needed)."""
        updates: list[Update] = []
        self._look_at_connection()
        if self._replay is not None and self.connected and self._is_doubtful():
            updates += self._catch_up(needed=self._doubtful)
        if not self._socket.poll(0 if updates else int(timeout_s * 1000)):
            self._look_at_connection()
            return updates
        for _ in range(most):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            updates += self._receive(frames)
        return updates

    def _is_doubtful(self) -> bool:
        now = time.monotonic()
        return now >= self._ask_after and (self._doubtful or now - self._last_news > IDLE_CHECK_S)

    def _look_at_connection(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self.connected:
                self.statistics.connections += 1
                self._doubtful = True
            else:
                self.statistics.disconnections += 1

    def _receive(self, frames: list[bytes]) -> list[Update]:
        self.statistics.messages += 1
        self._last_news = time.monotonic()
        if len(frames) != 3 or len(frames[1]) != 8:
            self.statistics.undecodable += 1
            return []
        batch = self._decode(int.from_bytes(frames[1], "big"), frames[2])
        if batch is None:
            return []
        updates: list[Update] = []
        if self._last_time_s is not None and batch.sequence < self._next:
            if batch.time_s <= self._last_time_s:
                self.statistics.duplicates += 1
                return []
            updates += self._restart()
        if batch.sequence > self._next:
            if self._last_time_s is not None:
                self.statistics.gaps += 1
            updates += self._catch_up(needed=True)
        # A replay has often brought the batch itself, and may have found that it is another publisher's.
        if batch.sequence >= self._next:
            updates += self._hand_out(batch)
        return updates

    def _catch_up(self, *, needed: bool) -> list[Update]:
        """Ask for all from the last batch on: it, to know the publisher again, and those behind it.

        Args:
            needed: something may well have been missed; else this is a check, which counts if it brings something.
        """
        if self._replay is None:
            return []
        known = self._last_time_s is not None
        batches = self._ask_for(self._next - 1 if known else 0)
        if batches is None:
            return []
        updates: list[Update] = []
        if known and not self._is_continued_by(batches):
            updates += self._restart()
            all_kept = self._ask_for(0)
            self._doubtful = all_kept is None
            batches = all_kept or []
        for batch in batches:
            if batch.sequence >= self._next:
                self.statistics.replayed += 1
                updates += self._hand_out(batch)
        self.statistics.replays += bool(needed or updates)
        return updates

    def _ask_for(self, first: int) -> list[Batch] | None:
        """What is kept from that number on, and no doubt any more; None if there is no answer, and the doubt stays."""
        assert self._replay is not None
        kept = fetch(self._context, self._replay, first, self._timeout_s)
        self._last_news = time.monotonic()
        if kept is None:
            self._ask_after = time.monotonic() + _ASK_AGAIN_S
            return None
        self._doubtful = False
        return [batch for number, payload in kept if (batch := self._decode(number, payload)) is not None]

    def _is_continued_by(self, batches: list[Batch]) -> bool:
        """Whether these, asked for from the last batch on, are the same publisher's. Where it does not keep the last
        batch any more, which it would if it had not published many since, there is no telling; a lost stretch is."""
        if not batches:
            return False  # it has not come as far as the last batch, which the one before had published
        if batches[0].sequence == self._next - 1:
            return batches[0].time_s == self._last_time_s
        return True

    def _restart(self) -> list[Update]:
        self.statistics.restarts += 1
        self._next, self._last_time_s = 0, None
        return [Restarted()]

    def _hand_out(self, batch: Batch) -> list[Update]:
        updates: list[Update] = []
        if batch.sequence > self._next:
            self.statistics.missed += batch.sequence - self._next
            updates.append(Missed(self._next, batch.sequence))
        self.statistics.batches += 1
        self._next, self._last_time_s = batch.sequence + 1, batch.time_s
        updates.append(batch)
        return updates

    def _decode(self, sequence: int, payload: bytes) -> Batch | None:
        try:
            return decode(sequence, payload)
        except ValueError:
            self.statistics.undecodable += 1
            return None
