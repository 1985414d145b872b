# SPDX-License-Identifier: Apache-2.0
"""Asking a publisher again for what it published: the protocol of SGLang's and vLLM's replay endpoint.

A request is [empty, sequence number], the number in 8 bytes, big-endian. The answer is a message [empty, number,
payload] for each batch from that number on which the publisher still keeps, and one with the number -1 at the end.
"""

import time

import zmq

_END = (-1).to_bytes(8, "big", signed=True)
_ATTEMPTS = 10


def fetch(
    context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, first: int, timeout_s: float
) -> list[tuple[int, bytes]] | None:
    """(sequence number, payload) of the kept batches from `first` on, in order and without a hole.

    The first of them is later than `first` where the publisher no longer keeps what is asked for. SGLang's publisher
    drops messages that do not fit into the socket's queue of 1,000, so what is missing is asked for again.

    Returns:
        None if there was no answer in `timeout_s` seconds.
    """
    found: list[tuple[int, bytes]] = []
    answered = False
    for _ in range(_ATTEMPTS):
        start = found[-1][0] + 1 if found else first
        batches, complete = _ask(context, endpoint, start, timeout_s)
        before = len(found)
        answered = answered or complete or bool(batches)
        hole = False
        for sequence, payload in batches:
            if found and sequence != found[-1][0] + 1:
                hole = hole or sequence > found[-1][0]
                continue
            found.append((sequence, payload))
        if (complete and not hole) or len(found) == before:
            break
    return found if answered else None


def _ask(
    context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, first: int, timeout_s: float
) -> tuple[list[tuple[int, bytes]], bool]:
    """One request: what came, and whether the end did. It has its own socket, which no earlier answer comes to."""
    asking = context.socket(zmq.DEALER)
    try:
        asking.set_hwm(0)
        asking.setsockopt(zmq.LINGER, 0)
        asking.setsockopt(zmq.IPV6, int("[" in endpoint))
        asking.connect(endpoint)
        asking.send_multipart((b"", first.to_bytes(8, "big")))
        batches: list[tuple[int, bytes]] = []
        deadline = time.monotonic() + timeout_s
        while asking.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            frames = asking.recv_multipart()
            if len(frames) != 3:
                continue
            if frames[1] == _END:
                return batches, True
            batches.append((int.from_bytes(frames[1], "big"), frames[2]))
            deadline = time.monotonic() + timeout_s  # as long as it goes on
        return batches, False
    finally:
        asking.close(linger=0)
