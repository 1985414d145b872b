# SPDX-License-Identifier: Apache-2.0
"""What SGLang (and vLLM) publish, decoded: msgpack of [time, [event, ...], rank], an event being [its name, fields]."""

from typing import Any

import msgspec

Name = int | bytes
"""Of a block: SGLang's are int64; newer releases of vLLM send bytes."""


class BlockStored(msgspec.Struct, array_like=True, tag=True, gc=False):
    """Blocks that follow one another are in the cache from now on."""

    block_hashes: list[Name]
    parent_block_hash: Name | None
    token_ids: list[Any]
    """Of all the blocks: `block_size` of them for each; pairs where SGLang drafts with EAGLE."""
    block_size: int
    lora_id: int | None = None
    medium: str | None = None


class BlockRemoved(msgspec.Struct, array_like=True, tag=True, gc=False):
    """Blocks are no longer in the cache."""

    block_hashes: list[Name]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, array_like=True, tag=True, gc=False):
    """The cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class _Payload(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[Event]
    attn_dp_rank: int | None = None


class Batch(msgspec.Struct, frozen=True):
    """What one message holds."""

    sequence: int
    time_s: float
    """Of the publisher's clock, since the epoch."""
    events: list[Event]


class Restarted(msgspec.Struct, frozen=True):
    """Another publisher, whose sequence begins at 0, took the place of the one before: its cache is empty."""


class Missed(msgspec.Struct, frozen=True):
    """Batches [first, stop) are lost: they came neither by themselves nor by replay."""

    first: int
    stop: int


Update = Batch | Restarted | Missed

_decoder = msgspec.msgpack.Decoder(_Payload)


def decode(sequence: int, payload: bytes) -> Batch:
    """ValueError if it is no batch of KV events."""
    try:
        decoded = _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise ValueError(f"message {sequence} is no batch of KV events: {error}") from None
    return Batch(sequence, decoded.ts, decoded.events)
