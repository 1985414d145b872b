# SPDX-License-Identifier: Apache-2.0
"""Aliasing is real: several virtual tensors, one piece of memory, and the system's own count of it."""

import os

import numpy as np
from core_harness import PAGE, Geometry, MakeCache, Memory, Request, ids, memory_files, run, system_mappings

from vt_sglang._core import KVCache


def test_a_write_through_one_tensor_is_read_through_another(make_cache: MakeCache, geometry: Geometry) -> None:
    """The shared prefix lies at two addresses at once."""
    cache = make_cache(geometry.token_bytes, budget_pages=64)
    prefix = "p" * (geometry.tokens_in(2) + 1)
    run(cache, ids(prefix))
    one, two = Request(cache, ids(prefix + "1")), Request(cache, ids(prefix + "2"))
    memory = Memory(cache)
    shared = geometry.tokens_in(one.shared - 1)  # tokens on pages that both share
    assert shared > 0
    memory.tokens(one.slot, 0, shared)[:] = np.arange(shared, dtype=np.uint64)[:, None]
    assert np.array_equal(memory.tokens(two.slot, 0, shared), memory.tokens(one.slot, 0, shared))
    mapped = memory.mapped_pages()
    for index in range(min(one.shared, two.shared)):
        assert mapped[one.slot, index] == mapped[two.slot, index] == cache.slot_pages(one.slot)[index]
    one.abort()
    two.abort()


def test_shared_pages_take_memory_once(cache: KVCache) -> None:
    """Five tensors of 16 pages over one prefix: 16 pages of memory, and one more page for each branch."""
    prefix = "p" * 60
    run(cache, ids(prefix))
    assert cache.physical_bytes() == (1 + 15) * PAGE
    branches = [Request(cache, ids(prefix + letter)) for letter in "12345"]
    assert cache.physical_bytes() == (1 + 15 + 5) * PAGE
    addresses = [at for at in Memory(cache).mapped_pages() if at[0] in [it.slot for it in branches]]
    assert len(addresses) == 5 * 16
    for it in branches:
        it.verify()
        it.abort()


def blocks_of(inode: int) -> int:
    """Bytes that the system counts to a memfd."""
    return os.stat(f"/proc/self/fd/{memory_files()[inode]}").st_blocks * 512


def test_the_system_counts_the_same_memory(make_cache: MakeCache, geometry: Geometry) -> None:
    """/proc/self/fd shows the memfd; its blocks are the pages that exist, whatever is mapped."""
    before = set(memory_files())
    cache = make_cache(geometry.token_bytes, budget_pages=64)
    (inode,) = set(memory_files()) - before
    assert blocks_of(inode) == cache.physical_bytes() == PAGE
    run(cache, ids("prefix" * 3))
    branches = [Request(cache, ids("prefix" * 3 + letter)) for letter in "123"]
    assert blocks_of(inode) == cache.physical_bytes() == cache.usage()["created_pages"] * PAGE
    for it in branches:
        it.abort()
    cache.evict(10**6)
    assert blocks_of(inode) == cache.usage()["created_pages"] * PAGE
    assert cache.trim() > 0
    assert blocks_of(inode) == cache.physical_bytes() == PAGE


def test_trim_gives_blocks_back_and_the_rest_keeps_its_content(cache: KVCache) -> None:
    kept = Request(cache, ids("kept" * 4))
    gone = Request(cache, ids("gone" * 4))
    gone.abort()
    before = cache.physical_bytes()
    assert cache.trim() == 4
    assert cache.physical_bytes() == before - 4 * PAGE
    kept.verify()
    kept.abort()


def test_all_memory_goes_with_the_cache() -> None:
    before = set(memory_files())
    cache = KVCache(driver="host", page_bytes=PAGE, token_bytes=1024, slots=3, slot_tokens=16, budget_pages=8)
    start, end = cache.base, cache.base + cache.slots * cache.slot_bytes
    assert set(memory_files()) != before
    del cache
    assert set(memory_files()) == before
    assert not [it for it in system_mappings(start, end) if "memfd:vt-sglang" in it.path]
