# SPDX-License-Identifier: Apache-2.0
"""Tree-aware decode against float64: requests that share stretches of tokens, each in its own virtual tensor."""

import random

import pytest
import torch
from arena import CUDA, DEVICE, DTYPES, Arena, assert_close
from reference import attend
from share import Segment, random_tree, words
from vt_sglang.triton_kernels import decode_hopper, shared_hopper
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.decode_plan import SHARED_ROWS, DecodeConfig, DecodePlan, SharedTasks, shared_tile


def run(
    lengths: list[int],
    segments: list[Segment],
    *,
    order: list[int] | None = None,
    kv_heads: int = 2,
    group: int = 4,
    head_dim: int = 64,
    members: int = 4,
    workers: int = 5,
    tile: int = 16,
    dtype: torch.dtype = torch.float16,
    kv_dtype: torch.dtype | None = None,
    spoil: bool = False,
    hopper: bool = False,
    **options: object,
) -> torch.Tensor:
    """Compare with float64, and return the output. With `spoil`, what a request shares is garbage in all slots but the
    one that the plan names, to see that it is not read there. With `hopper`, tasks are shared_hopper.py's."""
    if hopper:
        members, tile = SHARED_ROWS // group, shared_hopper.TILE
    generator = torch.Generator().manual_seed(sum(lengths) + head_dim)
    batch, heads = len(lengths), kv_heads * group
    arena = Arena(
        lengths, kv_heads=kv_heads, head_dim=head_dim, v_head_dim=head_dim, dtype=kv_dtype or dtype, generator=generator
    )
    for segment in segments:
        for row in segment.rows[1:]:
            for cache in (arena.k, arena.v):
                span = slice(segment.start, segment.stop)
                cache[arena.slots[row], span] = cache[arena.slots[segment.rows[0]], span]
    q = torch.randn(batch, heads, head_dim, generator=generator).to(dtype)
    out = torch.full_like(q, float("nan")).to(DEVICE)
    shared = SharedTasks(
        max_batch=batch + 3,
        max_tasks=40,
        max_levels=4,
        max_places=4 * batch + 5 * (workers + 2) * members,
        members=members,
        workers=workers + 2,
        tile=tile,
        device=DEVICE,
    )
    plan = DecodePlan(
        max_batch=batch + 3,
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        v_head_dim=head_dim,
        itemsize=arena.k.element_size(),
        multiprocessors=workers * kv_heads,
        device=DEVICE,
        config=decode_hopper.CONFIG if hopper else DecodeConfig(tile, 4, 2, 1),
        shared=shared,
    )
    for scratch in (plan.partial, plan.partial_lse):
        scratch.fill_(float("nan"))
    order = order or list(range(batch))
    shared.words.copy_(words(shared, segments, arena.slots.tolist(), order))
    expected = []
    for row, length in enumerate(lengths):
        keys, values = arena.request(row, length)
        expected.append(
            attend(
                q[row : row + 1],
                keys * options.get("k_scale", 1.0),
                values * options.get("v_scale", 1.0),
                scaling=head_dim**-0.5,
                logit_cap=options.get("logit_cap", 0.0),
                sinks=options.get("sinks"),
            )[0]
        )
    if spoil:
        named = {(int(task[0]), int(task[1])) for task in shared.tasks[: int(shared.header[0])]}
        for segment in segments:
            for row in segment.rows:
                if (int(arena.slots[row]), segment.start) not in named:
                    for cache in (arena.k, arena.v):
                        cache[arena.slots[row], segment.start : segment.stop] = 9.0  # finite: tiles overlap
    lengths_on = torch.tensor(lengths, device=DEVICE)
    plan.update(arena.slots.to(DEVICE), lengths_on)
    on = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    decode_attention(
        q.to(DEVICE), arena.k, arena.v, out, arena.slots.to(DEVICE), lengths_on, plan, scaling=head_dim**-0.5, **on
    )
    for row, length in enumerate(lengths):
        assert_close(out[row], expected[row], dtype, f"request {row} of {length} tokens")
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workers", [1, 3, 40])
def test_one_level(dtype: torch.dtype, workers: int) -> None:
    """Seven requests on one prefix, more than a task holds, beside some that share nothing, short and idle ones."""
    lengths = [160, 151, 3, 400, 149, 0, 149, 200, 33, 16, 161, 149]
    rows = (0, 1, 3, 4, 6, 7, 10)
    order = [*rows, *(row for row in range(len(lengths)) if row not in rows)]
    if dtype == DTYPES[0]:
        lengths[5] = 17
    live = [length or 1 for length in lengths]
    run(live, [Segment(0, 148, rows)], order=order, dtype=dtype, workers=workers, spoil=workers == 3)


@pytest.mark.parametrize("stop", [16, 17, 31, 32, 33, 130])
@pytest.mark.parametrize("own", [1, 15, 16, 17, 40])
def test_borders(stop: int, own: int) -> None:
    """Prefixes and own parts that end at tiles' borders and beside them."""
    run([stop + own, stop + 1, stop + 2], [Segment(0, stop, (0, 1, 2))], spoil=True)


def test_a_tree_of_three_levels() -> None:
    """A system prompt, below it two tools, below one of these a forked conversation; tasks shorter than a tile."""
    lengths = [300, 222, 223, 250, 333, 140, 141, 90, 500]
    segments = [
        Segment(0, 70, (0, 1, 2, 3, 4, 5, 6, 7)),
        Segment(70, 215, (0, 1, 2, 3, 4)),
        Segment(70, 75, (5, 6)),
        Segment(215, 221, (1, 2)),
    ]
    order = [0, 1, 2, 3, 4, 5, 6, 7, 8]
    for workers in (1, 6, 17):
        run(lengths, segments, order=order, workers=workers)


@pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim"), [(4, 1, 64), (1, 8, 128), (3, 5, 64), (2, 4, 80), (1, 4, 256)]
)
def test_heads(kv_heads: int, group: int, head_dim: int) -> None:
    """MHA, GQA and MQA; a group that does not fill a tile of rows; a head that TMA does not read."""
    segment = Segment(0, 50, (0, 1, 2, 3, 4))
    run([60, 51, 70, 90, 130, 22], [segment], kv_heads=kv_heads, group=group, head_dim=head_dim, members=3)


def test_features() -> None:
    """What decode alone can, it can here: capped scores, sinks once a request, float8 with scales."""
    segment = [Segment(0, 50, (0, 1, 2))]
    run([60, 51, 70], segment, logit_cap=1.5)
    run([60, 51, 70], segment, sinks=torch.linspace(-2, 3, 8))
    scales = {"k_scale": torch.tensor([0.5]), "v_scale": torch.tensor([2.0])}
    run([60, 51, 70], segment, kv_dtype=torch.float8_e4m3fn, **scales)


def test_no_task_is_plain_decode() -> None:
    """Bit for bit: the same tiles, in the same order."""
    lengths = [60, 51, 7, 160]
    with_plan = run(lengths, [])
    generator = torch.Generator().manual_seed(sum(lengths) + 64)
    arena = Arena(lengths, kv_heads=2, head_dim=64, v_head_dim=64, dtype=torch.float16, generator=generator)
    q = torch.randn(4, 8, 64, generator=generator).to(torch.float16).to(DEVICE)
    out = torch.full_like(q, float("nan"))
    sizes = {"max_batch": 4, "kv_heads": 2, "group": 4, "head_dim": 64, "v_head_dim": 64, "itemsize": 2}
    plan = DecodePlan(**sizes, multiprocessors=10, device=DEVICE, config=DecodeConfig(16, 4, 2, 1))
    on = torch.tensor(lengths, device=DEVICE)
    plan.update(arena.slots.to(DEVICE), on)
    decode_attention(q, arena.k, arena.v, out, arena.slots.to(DEVICE), on, plan, scaling=64**-0.5)
    assert torch.equal(out, with_plan)


@pytest.mark.parametrize("seed", range(6))
def test_random_trees(seed: int) -> None:
    """Trees of up to three levels, groups of any size, ragged own parts."""
    draw = random.Random(seed)
    batch = draw.randint(2, 12)
    segments, lengths = random_tree(draw, batch, levels=3, stretches=[16, 17, 30, 64, 100], owns=[1, 5, 16, 33, 100])
    run(lengths, segments, workers=draw.choice([1, 2, 7, 30]), members=draw.choice([2, 4, 16]))


def test_tasks_have_the_tiles_of_the_kernel_that_reads_them() -> None:
    """Where heads are large or shared memory is small, these are not always the same."""
    tasks = {"max_batch": 2, "max_tasks": 4, "max_levels": 1, "max_places": 8, "members": 2, "workers": 2}
    for head_dim, itemsize in ((64, 2), (128, 2), (256, 2), (256, 1)):
        sizes = {"max_batch": 2, "kv_heads": 1, "group": 4, "head_dim": head_dim, "v_head_dim": head_dim}
        sizes |= {"itemsize": itemsize, "multiprocessors": 2, "device": DEVICE}
        tile = shared_tile(head_dim, head_dim, itemsize, DEVICE)
        assert tile <= 64
        assert DecodePlan(**sizes, shared=SharedTasks(**tasks, tile=tile, device=DEVICE)).config.tile == tile
        with pytest.raises(ValueError, match=f"the tasks have tiles of {2 * tile} tokens"):
            DecodePlan(**sizes, shared=SharedTasks(**tasks, tile=2 * tile, device=DEVICE))
    assert shared_tile(256, 256, 2, "cpu") < shared_tile(128, 128, 2, "cpu")


# Gluon has no interpreter.
needs_hopper = pytest.mark.skipif(
    not CUDA or torch.cuda.get_device_capability()[0] != 9, reason="needs a GPU of compute capability 9"
)


@needs_hopper
@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize(
    ("dtype", "kv_heads", "group"),
    [(torch.float16, 2, 4), *((torch.bfloat16, *it) for it in ((2, 4), (1, 8), (3, 1), (2, 5), (1, 20)))],
)
def test_hopper_one_level(dtype: torch.dtype, workers: int, kv_heads: int, group: int) -> None:
    """More requests than a task holds, a task that half fills its rows, requests beside them, short and idle ones."""
    lengths = [400 + 7 * (row % 30) for row in range(40)] + [3, 127, 600, 128, 129]
    options = {"kv_heads": kv_heads, "group": group, "head_dim": 128, "dtype": dtype, "workers": workers}
    run(lengths, [Segment(0, 399, tuple(range(40)))], hopper=True, spoil=True, **options)


@needs_hopper
@pytest.mark.parametrize("stop", [128, 129, 255, 256, 257, 383, 384])
@pytest.mark.parametrize("own", [1, 127, 128, 129])
def test_hopper_borders(stop: int, own: int) -> None:
    run([stop + own, stop + 1, stop + 2], [Segment(0, stop, (0, 1, 2))], head_dim=128, hopper=True, spoil=True)


@needs_hopper
def test_hopper_tree() -> None:
    segments = [Segment(0, 200, tuple(range(8))), Segment(200, 400, (0, 1, 2, 3)), Segment(400, 530, (1, 2))]
    for workers in (1, 6, 17):
        run([600, 541, 666, 450, 333, 201, 202, 590, 333], segments, head_dim=128, hopper=True, workers=workers)


@needs_hopper
def test_hopper_no_task() -> None:
    run([60, 51, 7, 160, 400], [], head_dim=128, hopper=True)
    run(
        [60, 300, 400],
        [Segment(0, 290, (1, 2))],
        order=[1, 2, 0],
        head_dim=128,
        hopper=True,
        sinks=torch.linspace(-2, 3, 8),
    )
