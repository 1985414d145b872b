# SPDX-License-Identifier: Apache-2.0
"""Kernels that begin while the one before them still runs read what it has yet to write."""

import pytest
import torch
import triton
import triton.language as tl
from arena import CUDA, Arena
from share import Segment, words
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from vt_sglang.triton_kernels import decode_hopper, shared_hopper
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.decode_plan import SHARED_ROWS, DecodePlan, SharedTasks
from vt_sglang.triton_kernels.store import store_kv

pytestmark = pytest.mark.skipif(
    not CUDA or torch.cuda.get_device_capability()[0] != 9, reason="needs a GPU of compute capability 9"
)

LAYERS, BATCH, SHARED, KV_HEADS, GROUP, HEAD_DIM = 6, 24, 400, 2, 4, 128


@triton.jit
def _late_copy(source, to, nanoseconds, size, BLOCK: tl.constexpr):  # noqa: N803
    """A copy that lets others begin, waits, and only then writes."""
    gdc_wait()
    gdc_launch_dependents()
    begun = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
    now = begun
    while now - begun < nanoseconds:
        now = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(to + at, tl.load(source + at, mask=at < size), mask=at < size)


@pytest.mark.parametrize("stored", [False, True], ids=["queries are late", "so are keys and values"])
@pytest.mark.parametrize("sharing", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("multiprocessors", [9, 60], ids=["runs are left over", "a run or less for each"])
def test_layers_of_a_graph_wait_for_each_other(multiprocessors: int, sharing: bool, stored: bool) -> None:
    """Each layer has the buffers of the one before, so that whoever reads too early finds another layer's. Where runs
    are left over, each layer counts them anew."""
    generator = torch.Generator().manual_seed(1)
    # The newest token is anywhere in its tile, also its last, as tiles are counted from 0 and from what is shared.
    lengths = [
        (SHARED + 1 + 13 * row, 64 * (7 + row // 3 % 5), SHARED + 64 * (1 + row // 3 % 5))[row % 3]
        for row in range(BATCH)
    ]
    arena = Arena(
        lengths,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        v_head_dim=HEAD_DIM,
        dtype=torch.bfloat16,
        slot_tokens=800,
        generator=generator,
    )
    for cache in (arena.k, arena.v):
        cache[arena.slots[1:], :SHARED] = cache[arena.slots[0], :SHARED]
    shared = SharedTasks(
        max_batch=BATCH,
        max_tasks=8,
        max_levels=2,
        max_places=200,
        members=SHARED_ROWS // GROUP,
        workers=4,
        tile=shared_hopper.TILE,
        device="cuda",
    )
    plan = DecodePlan(
        max_batch=BATCH,
        kv_heads=KV_HEADS,
        group=GROUP,
        head_dim=HEAD_DIM,
        v_head_dim=HEAD_DIM,
        itemsize=2,
        multiprocessors=multiprocessors,
        device="cuda",
        config=decode_hopper.CONFIG,
        shared=shared,
    )
    segments = [Segment(0, SHARED, tuple(range(BATCH)))] if sharing else []
    shared.words.copy_(words(shared, segments, arena.slots.tolist(), list(range(BATCH))))
    slots, ends = arena.slots.cuda(), torch.tensor(lengths, device="cuda")
    plan.update(slots, ends)
    assert (int(plan.runs_left) > 0) == (multiprocessors == 9)

    queries = torch.randn(LAYERS, BATCH, KV_HEADS * GROUP, HEAD_DIM, generator=generator).bfloat16().cuda()
    new = torch.randn(LAYERS, 2, BATCH, KV_HEADS, HEAD_DIM, generator=generator).bfloat16().cuda()
    q, kv = torch.empty_like(queries[0]), torch.empty_like(new[0])
    out = torch.full_like(queries, float("nan"))
    at = slots * arena.k.shape[1] + ends - 1

    def late_copy(source: torch.Tensor, to: torch.Tensor) -> None:
        programs = triton.cdiv(source.numel(), 4096)
        _late_copy[(programs,)](source, to, 20_000, source.numel(), BLOCK=4096, launch_pdl=True)

    def play(pause: bool) -> None:
        for layer in range(LAYERS):
            late_copy(queries[layer], q)
            if pause:
                torch.cuda.synchronize()
            if stored:
                late_copy(new[layer], kv)
                store_kv(kv[0], kv[1], arena.k.flatten(0, 1), arena.v.flatten(0, 1), at)
                if pause:
                    torch.cuda.synchronize()
            decode_attention(q, arena.k, arena.v, out[layer], slots, ends, plan, scaling=HEAD_DIM**-0.5)
            if pause:
                torch.cuda.synchronize()

    play(pause=True)
    expected = out.clone()
    assert expected.isfinite().all()
    assert all(not torch.equal(expected[0], its) for its in expected[1:])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        play(pause=False)
    for replay in range(20):
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected), f"replay {replay}"
