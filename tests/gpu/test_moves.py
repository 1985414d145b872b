# SPDX-License-Identifier: Apache-2.0
"""Contents move between pages of a GPU, and are copied, beside kernels that read and write others: every conversation
keeps its own. VT_STRESS_SECONDS=n makes it long."""

import os
import random
import time
from array import array

import pytest
import torch

from vt_sglang._core import KVCache, SlotsBusy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SECONDS = float(os.environ.get("VT_STRESS_SECONDS", "10"))
PAGE = 2 * 2**20
TOKENS_A_PAGE = 16
WORDS = PAGE // TOKENS_A_PAGE // 4  # int32, of a token


def _content(ids: torch.Tensor) -> torch.Tensor:
    """[tokens, WORDS] int32 that say which token stands where."""
    places = torch.arange(len(ids), device="cuda")
    words = torch.arange(WORDS, device="cuda")
    return (ids[:, None] * 1_000_003 + places[:, None] * 7919 + words[None, :] * 31).to(torch.int32)


@pytest.mark.parametrize("map_ahead", [False, True])
def test_conversations_keep_their_contents(map_ahead: bool) -> None:
    """Few slots, so that conversations take each other's pages; forwards are checked on the device and not waited for,
    but for those that the core asks for."""
    cache = KVCache(
        driver="cuda",
        page_bytes=0,
        token_bytes=PAGE // TOKENS_A_PAGE,
        slots=9,
        slot_tokens=1040,
        budget_pages=900,
        move_pages=True,
        map_ahead=map_ahead,
        copy_from_pages=8,
    )
    stream = torch.cuda.Stream()
    cache.set_stream(stream.cuda_stream)
    rows = torch.utils.dlpack.from_dlpack(
        cache.tensor(0, [cache.slots * cache.slot_tokens, WORDS * 4], [WORDS * 4, 1], "uint8")
    )
    rows = rows.view(torch.int32)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    draw = random.Random(1)
    system = [draw.randrange(2**30) for _ in range(200)]
    talks: list[list[int]] = [list(system) for _ in range(40)]
    flying: list[tuple[int, torch.cuda.Event]] = []
    held: list[tuple[int, int]] = []  # slots and nodes of requests that go on, so that what they read cannot move
    checked = turns = waits = 0
    torch.cuda.synchronize()

    def land(most: int) -> None:
        while len(flying) > most:
            number, event = flying.pop(0)
            event.synchronize()
            cache.complete_forward(number)

    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        k = draw.randrange(len(talks))
        if len(talks[k]) > 800:
            talks[k] = list(system)
        talks[k] += [draw.randrange(2**30) for _ in range(draw.randrange(1, 100))]
        ids, more = array("q", talks[k]), [draw.randrange(2**30) for _ in range(draw.randrange(1, 40))]
        if draw.random() < 0.1:
            cache.evict(100)
        node, matched = cache.match(None, ids, len(ids) - 1, len(ids) + len(more))
        cache.lock(node)
        if len(flying) >= 4:
            land(3)  # at least one of the six slots that none of the two holds is idle
        try:
            slot = cache.bind(None, node, len(ids), spare_pages=200)[0]
        except SlotsBusy:
            land(0)
            waits += 1
            slot = cache.bind(None, node, len(ids), spare_pages=200)[0]
        talks[k] += more
        whole = array("q", talks[k])
        cache.grow(torch.tensor([slot]).numpy(), torch.tensor([len(whole)]).numpy())
        number = cache.begin_forward(torch.tensor([slot]).numpy())
        with torch.cuda.stream(stream):
            content = _content(torch.tensor(whole, device="cuda"))
            view = rows[slot * cache.slot_tokens : slot * cache.slot_tokens + len(whole)]
            wrong += (view[:matched] != content[:matched]).any(dim=1).sum()
            view[matched:] = content[matched:]
            event = torch.cuda.Event()
            event.record()
        flying.append((number, event))
        cache.record(slot, whole)
        held.append((slot, node))
        if len(held) > 2:
            slot, node = held.pop(draw.randrange(3))
            cache.release(slot)
            cache.unlock(node)
        checked += matched
        turns += 1
    land(0)
    counters = cache.counters()
    print(f"\n{turns} turns, {waits} waits, {checked} tokens found and compared, {counters}")
    assert int(wrong) == 0
    assert checked > 10_000
    assert counters["pages_moved"] > 1000
    assert counters["pages_copied"] > 1000
    cache.check()
