# SPDX-License-Identifier: Apache-2.0
"""Whole blocks of tokens, kept for those who are told what the tree holds."""

import hashlib
import random
from array import array

import pytest
from core_harness import MakeCache, ids

from vt_sglang._core import InvariantError, KVCache

BLOCK = 4


def block_id(parent: bytes | None, tokens: array) -> bytes:
    return hashlib.sha256((parent or b"") + tokens.tobytes()).digest()


def name_blocks(cache: KVCache, node: int, prompt: array) -> list[bytes]:
    """What an adapter does after it recorded something new."""
    start, parent = cache.new_blocks(node)
    named = []
    for begin in range(start, len(prompt) - BLOCK + 1, BLOCK):
        parent = block_id(parent, prompt[begin : begin + BLOCK])
        named.append(parent)
    cache.set_blocks(node, b"".join(named))
    return named


def put(cache: KVCache, prompt: array) -> list[bytes]:
    """Record a prompt. Returns the blocks that are new."""
    node, _ = cache.match(None, prompt)
    cache.lock(node)
    slot = cache.bind(None, node, len(prompt))[0]
    leaf, _, added = cache.record(slot, prompt)
    named = name_blocks(cache, leaf, prompt) if added else []
    cache.release(slot)
    cache.unlock(node)
    return named


def split(blocks: bytes) -> list[bytes]:
    return [blocks[i : i + 32] for i in range(0, len(blocks), 32)]


@pytest.fixture
def blocks(make_cache: MakeCache) -> KVCache:
    return make_cache(block_tokens=BLOCK)


def test_the_tree_holds_exactly_the_blocks_of_its_sequences(blocks: KVCache) -> None:
    """Random sequences over few tokens, so that nodes are split at every place; evictions and clearing between."""
    source = random.Random(1)
    here: set[bytes] = set()
    added = removed = 0
    for step in range(400):
        prompt = array("q", (source.randrange(2) for _ in range(source.randrange(1, 20))))
        new = put(blocks, prompt)
        assert not here & set(new), "a block was stored again"
        here |= set(new)
        added += len(new)
        if step % 5 == 0:
            blocks.evict(source.randrange(3))
        if step % 100 == 99:
            blocks.clear()
        gone = split(blocks.take_removed_blocks())
        removed += len(gone)
        here -= set(gone)
        stored = split(blocks.blocks())
        assert len(stored) == len(set(stored))
        assert set(stored) == here
        blocks.check()
    assert added == removed > 400
    assert here == set()


def test_children_are_removed_before_their_parents(blocks: KVCache) -> None:
    named = put(blocks, ids("abcdefghijkl")) + put(blocks, ids("abcdefghijklmnop"))
    blocks.evict(100)
    assert split(blocks.take_removed_blocks()) == named[::-1]
    assert blocks.take_removed_blocks() == b""


def test_a_block_that_two_nodes_share_belongs_to_the_later(blocks: KVCache) -> None:
    assert put(blocks, ids("abcdef"))[0] == block_id(None, ids("abcd"))
    assert put(blocks, ids("abcdefgh")) == [block_id(block_id(None, ids("abcd")), ids("efgh"))]
    assert put(blocks, ids("abcdefgX")) == [block_id(block_id(None, ids("abcd")), ids("efgX"))]


def test_blocks_need_names_in_order_and_number(blocks: KVCache) -> None:
    slot = blocks.bind(None, 0, 12)[0]
    first = blocks.record(slot, ids("abcdefgh"))[0]
    with pytest.raises(ValueError, match="2 blocks end"):
        blocks.set_blocks(first, bytes(32))
    with pytest.raises(ValueError, match="32 bytes"):
        blocks.set_blocks(first, bytes(33))
    second = blocks.record(slot, ids("abcdefghijkl"))[0]
    with pytest.raises(InvariantError, match="before those above"):
        blocks.new_blocks(second)
    blocks.set_blocks(first, bytes(range(64)))
    assert blocks.new_blocks(second) == (8, bytes(range(32, 64)))
    with pytest.raises(ValueError, match="2 of them set"):
        blocks.set_blocks(first, bytes(64))


def test_without_blocks(cache: KVCache) -> None:
    slot = cache.bind(None, 0, 8)[0]
    node = cache.record(slot, ids("abcdefgh"))[0]
    with pytest.raises(ValueError, match="block_tokens is 0"):
        cache.new_blocks(node)
    assert cache.blocks() == cache.take_removed_blocks() == b""
