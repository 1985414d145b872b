# SPDX-License-Identifier: Apache-2.0
"""Layers of decode attention one after the other, with nothing between: on a GPU each begins while the one before ends,
and all use the same scratch memory."""

import pytest
import torch
from arena import CUDA, DEVICE, Arena, assert_close
from reference import attend
from share import Segment, words
from vt_sglang.triton_kernels import decode_hopper, shared_hopper
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.decode_plan import SHARED_ROWS, DecodeConfig, DecodePlan, SharedTasks

HOPPER = CUDA and torch.cuda.get_device_capability()[0] == 9
LAYERS, SHARED = (5, 290) if CUDA else (2, 40)  # an odd number where they are replayed
KV_HEADS, GROUP = 2, 4
HEAD_DIM = 128 if CUDA else 64
DTYPE = torch.bfloat16 if CUDA else torch.float16
LENGTHS = [SHARED + 1 + 13 * (row % 5) for row in range(7)]


def make_plan(
    arena: Arena, batch: int, sharing: bool, multiprocessors: int
) -> tuple[DecodePlan, torch.Tensor, torch.Tensor]:
    """For the arena's first requests: the plan, their slots and lengths."""
    tile = shared_hopper.TILE if HOPPER else 16
    shared = SharedTasks(
        max_batch=len(LENGTHS),
        max_tasks=8,
        max_levels=2,
        max_places=100,
        members=SHARED_ROWS // GROUP if HOPPER else 4,
        workers=3,
        tile=tile,
        device=DEVICE,
    )
    plan = DecodePlan(
        max_batch=len(LENGTHS),
        kv_heads=KV_HEADS,
        group=GROUP,
        head_dim=HEAD_DIM,
        v_head_dim=HEAD_DIM,
        itemsize=2,
        multiprocessors=multiprocessors,
        device=DEVICE,
        config=decode_hopper.CONFIG if HOPPER else DecodeConfig(tile, 4, 2, 1),
        shared=shared,
    )
    segments = [Segment(0, SHARED, tuple(range(batch)))] if sharing else []
    shared.words.copy_(words(shared, segments, arena.slots[:batch].tolist(), list(range(batch))))
    slots, lengths = arena.slots[:batch].to(DEVICE), torch.tensor(LENGTHS[:batch], device=DEVICE)
    plan.update(slots, lengths)
    return plan, slots, lengths


@pytest.mark.parametrize("batches", [(7, True), (7, False), (1, False)], ids=["shared", "alone", "one request"])
@pytest.mark.parametrize("multiprocessors", [3, 8])
def test_layers_back_to_back(multiprocessors: int, batches: tuple[int, bool]) -> None:
    """Each layer has queries and outputs of its own. Between them another plan's layers run, of another batch. Few
    multiprocessors leave runs over on Hopper, one of which has no other."""
    generator = torch.Generator().manual_seed(3)
    arena = Arena(LENGTHS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, v_head_dim=HEAD_DIM, dtype=DTYPE, generator=generator)
    for cache in (arena.k, arena.v):
        cache[arena.slots[1:], :SHARED] = cache[arena.slots[0], :SHARED]
    plans = [make_plan(arena, *batches, multiprocessors), make_plan(arena, 4, True, multiprocessors)]
    if HOPPER and batches == (7, False) and multiprocessors == 3:
        assert int(plans[0][0].runs_left) > 0
    shape = (LAYERS, len(LENGTHS), KV_HEADS * GROUP, HEAD_DIM)
    queries = [torch.randn(shape, generator=generator).to(DTYPE).to(DEVICE) for _ in plans]
    outputs = [torch.full_like(it, float("nan")) for it in queries]

    def play() -> None:
        for layer in range(LAYERS):
            for (plan, slots, lengths), q, out in zip(plans, queries, outputs, strict=True):
                batch = len(slots)
                decode_attention(
                    q[layer, :batch], arena.k, arena.v, out[layer, :batch], slots, lengths, plan,
                    scaling=HEAD_DIM**-0.5,
                )  # fmt: skip

    def verify(what: str) -> None:
        for (_, slots, _), q, out in zip(plans, queries, outputs, strict=True):
            for row in range(len(slots)):
                keys, values = arena.request(row, LENGTHS[row])
                for layer in range(LAYERS):
                    expected = attend(q[layer, row : row + 1].cpu(), keys, values, scaling=HEAD_DIM**-0.5)[0]
                    assert_close(out[layer, row], expected, DTYPE, f"{what}: layer {layer}, request {row}")
            out.fill_(float("nan"))

    play()
    verify("eager")
    if CUDA:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            play()
        for replay in range(3):
            graph.replay()
            torch.cuda.synchronize()
            verify(f"replay {replay}")
