# SPDX-License-Identifier: Apache-2.0
"""Pages of a reservation are remapped while kernels read its other pages: no fault, no wrong word.
VT_STRESS_SECONDS=n makes it long, and VT_STRESS_JSON=path keeps what happened in path.TEST.json."""

import json
import os
import random
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
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
GUARD = 192  # tokens behind a prompt that may be read


def _keep(test: str, **happened: Any) -> None:
    """Print what happened, and keep it where that is asked for."""
    print(f"\n{test}, {SECONDS:g} s: {happened}")
    if path := os.environ.get("VT_STRESS_JSON"):
        Path(f"{path}.{test}.json").write_text(json.dumps({"seconds": SECONDS} | happened))


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
    told = {"sweeps": sweeps, "mib_a_sweep": mebibytes, "turns": turns, "wrong": int(wrong)}
    _keep("readers", **told, pages_mapped=remaps)
    assert told["wrong"] == 0
    assert remaps > 100 * SECONDS
    assert sweeps > 10
    cache.check()


def test_mapping_ahead_beside_readers() -> None:
    """Four slots are read over and over on a stream of their own, while a fifth grows page by page over guards, which a
    thread replaces, and sixth to eighth come and go; all that they held is unmapped and given back, and so on."""
    cache = KVCache(
        driver="cuda",
        page_bytes=0,
        token_bytes=PAGE // TOKENS_A_PAGE,
        slots=READERS + 5,
        slot_tokens=PAGES * TOKENS_A_PAGE,
        budget_pages=(READERS + 2) * PAGES,
        move_pages=True,
        map_ahead=True,
    )
    stream = torch.cuda.current_stream()
    cache.set_stream(stream.cuda_stream)
    shape = [cache.slots * cache.slot_tokens, ELEMENTS * 4]
    rows = torch.utils.dlpack.from_dlpack(cache.tensor(0, shape, [ELEMENTS * 4, 1], "uint8")).view(torch.int32)

    def view(slot: int, first: int, last: int) -> torch.Tensor:
        """Pages of a slot."""
        start = slot * cache.slot_tokens
        return rows[start + first * TOKENS_A_PAGE : start + last * TOKENS_A_PAGE]

    readers = [cache.bind(f"reader {number}", 0, PAGES * TOKENS_A_PAGE)[0] for number in range(READERS)]
    for number, slot in enumerate(readers):
        view(slot, 0, PAGES).fill_(number + 1)
    torch.cuda.synchronize()
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    beside = torch.cuda.Stream()
    pending: list[torch.cuda.Event] = []
    sweeps = turns = 0
    start = cache.counters()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        turns += 1
        others = [cache.bind(f"other {turns}", 0, 200 + 16 * number, GUARD)[0] for number in range(3)]
        slot = cache.bind(f"grows {turns}", 0, 1, GUARD)[0]
        cache.complete_forward(cache.begin_forward(np.array([slot]), True))
        for page in range(PAGES):
            cache.grow(np.array([slot]), np.array([(page + 1) * TOKENS_A_PAGE]), 0)
            view(slot, page, page + 1).fill_(turns + page)
            if page % 16 == 15 and others:
                cache.release(others.pop())
            while len(pending) < 8:
                with torch.cuda.stream(beside):
                    for number, reader in enumerate(readers):
                        wrong += (view(reader, 0, PAGES) != number + 1).sum()
                    event = torch.cuda.Event()
                    event.record()
                pending.append(event)
                sweeps += 1
            pending = [event for event in pending if not event.query()]
        pages = view(slot, 0, PAGES).view(PAGES, -1)
        wrong += (pages != torch.arange(turns, turns + PAGES, device="cuda")[:, None]).sum()
        stream.synchronize()
        cache.release(slot)
        cache.check()
        cache.trim(0)
    torch.cuda.synchronize()
    counters = cache.counters()
    changes = {name: value - start[name] for name, value in counters.items() if value != start[name]}  # type: ignore[literal-required]
    mebibytes = READERS * PAGES * PAGE >> 20
    told = {"sweeps": sweeps, "mib_a_sweep": mebibytes, "turns": turns, "wrong": int(wrong)}
    _keep("ahead", **told, counters=changes)
    assert told["wrong"] == 0
    assert changes["pages_mapped_ahead"] > 10 * turns
    assert changes["guards_mapped"] > turns
    assert changes["pages_unmapped"] > PAGES * turns
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
    _keep("elsewhere", binds=binds, counters=counters)
    assert counters["pages_unmapped"] > 1000
    cache.check()
