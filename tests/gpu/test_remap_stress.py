# SPDX-License-Identifier: Apache-2.0
"""Pages of a reservation are remapped while kernels read its other pages: no fault, no wrong word.
VT_STRESS_SECONDS=n makes it long."""

import os
import random
import time
from array import array

import pytest
import torch

from vt_sglang._core import KVCache

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SECONDS = float(os.environ.get("VT_STRESS_SECONDS", "10"))
PAGE = 2 * 2**20
TOKENS_A_PAGE = 16
ELEMENTS = PAGE // TOKENS_A_PAGE // 4  # int32 words of a token
PAGES = 64  # of each slot
READERS = 4


def test_remapping_beside_readers() -> None:
    """Four slots are read over and over on a stream of their own, while the only other one is bound to one of two long
    prefixes by turns: all its mappings are replaced, and none of those that are read."""
    tokens = PAGES * TOKENS_A_PAGE
    cache = KVCache(
        driver="cuda",
        page_bytes=0,
        token_bytes=PAGE // TOKENS_A_PAGE,
        slots=READERS + 2,
        slot_tokens=tokens,
        budget_pages=(READERS + 2) * PAGES,
    )
    cache.set_stream(torch.cuda.current_stream().cuda_stream)
    shape = [cache.slots * cache.slot_tokens, ELEMENTS * 4]
    rows = torch.utils.dlpack.from_dlpack(cache.tensor(0, shape, [ELEMENTS * 4, 1], "uint8")).view(torch.int32)

    def fill(slot: int, seed: int) -> int:
        generator = torch.Generator("cuda").manual_seed(seed)
        view = rows[slot * cache.slot_tokens : slot * cache.slot_tokens + tokens]
        view.random_(-(2**31), 2**31 - 1, generator=generator)
        return int(view.sum(dtype=torch.int64))

    readers, sums = [], []
    for number in range(READERS):
        slot = cache.bind(f"reader {number}", 0, tokens)[0]
        readers.append(slot)
        sums.append(fill(slot, number))
    nodes = []
    for number in range(2):  # what the remapped slot shares by turns
        slot = cache.bind(f"shared {number}", 0, tokens)[0]
        sums.append(fill(slot, 100 + number))
        cache.record(slot, array("q", range(tokens)))
        cache.release(slot)
        node, matched = cache.match(f"shared {number}", array("q", range(tokens)), None, tokens)
        assert matched == tokens
        cache.lock(node)
        nodes.append(node)
    torch.cuda.synchronize()
    expected = torch.tensor(sums[:READERS], device="cuda")
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    stream = torch.cuda.Stream()
    before = cache.counters()["pages_mapped"]
    sweeps = turns = 0
    pending: list[torch.cuda.Event] = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        while len(pending) < 8:
            with torch.cuda.stream(stream):
                for number, slot in enumerate(readers):
                    view = rows[slot * cache.slot_tokens : (slot + 1) * cache.slot_tokens]
                    wrong += view.sum(dtype=torch.int64) != expected[number]
                event = torch.cuda.Event()
                event.record()
            pending.append(event)
            sweeps += 1
        slot = cache.bind(f"shared {turns % 2}", nodes[turns % 2], tokens)[0]
        assert slot not in readers
        assert cache.slot_pages(slot) == cache.path_pages(nodes[turns % 2])
        if turns % 50 == 0:
            view = rows[slot * cache.slot_tokens : slot * cache.slot_tokens + tokens]
            assert int(view.sum(dtype=torch.int64)) == sums[READERS + turns % 2]
        cache.release(slot)
        turns += 1
        pending = [event for event in pending if not event.query()]
    torch.cuda.synchronize()
    remaps = cache.counters()["pages_mapped"] - before
    mebibytes = READERS * tokens * ELEMENTS * 4 >> 20
    print(f"\n{remaps} pages remapped in {SECONDS:g} s beside {sweeps} sweeps of {mebibytes} MiB")
    assert int(wrong) == 0
    assert remaps > 100 * SECONDS
    assert sweeps > 10
    cache.check()


def test_pages_that_come_back_elsewhere() -> None:
    """Pages are freed and taken again at other places, in every order of driver calls that binds come to: one that is
    unmapped while another place of it has no access yet would be lost (csrc/cuda_driver.cpp)."""
    cache = KVCache(
        driver="cuda", page_bytes=0, token_bytes=PAGE // TOKENS_A_PAGE, slots=25, slot_tokens=1040, budget_pages=188
    )
    cache.set_stream(torch.cuda.current_stream().cuda_stream)
    draw = random.Random(1)
    paths: list[array[int]] = [array("q")]
    end, binds = time.perf_counter() + SECONDS, 0
    while time.perf_counter() < end:
        old = draw.choice(paths)
        new = array("q", (draw.randrange(2**40) for _ in range(draw.randrange(1, 400))))
        path = (old[: draw.randrange(len(old) + 1)] + new)[:1040]
        paths = [*paths[-20:], path]
        node, _ = cache.match(None, path, len(path) - 1)
        cache.lock(node)
        slot = cache.bind(None, node, len(path))[0]
        cache.unlock(node)
        torch.cuda.synchronize()  # a tail's copy: the pages it reads and writes may be unmapped from here on
        cache.record(slot, path)
        cache.release(slot)
        binds += 1
    counters = cache.counters()
    print(f"\n{binds} binds, {counters}")
    assert counters["pages_unmapped"] > 1000
    cache.check()
