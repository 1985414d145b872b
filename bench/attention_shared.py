# SPDX-License-Identifier: Apache-2.0
"""Tree-aware decode beside FlashAttention-3: requests that share stretches of tokens. FlashAttention-3 reads the same
pages for all of them, of one token, as SGLang runs it; and, where there is one level of sharing, as a cascade: the
prefix for all requests at once, then each one's own part, then a merge. The floor is each byte once, at the rate of a
plain read in the same run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_timing import read_ceiling, sides_seconds
from kv_layouts import HEAD_DIM, VirtualTensors, relative_error, rotated
from rich.table import Table
from sgl_kernel import merge_state_v2
from sgl_kernel.flash_attn import get_scheduler_metadata
from sglang.kernels.ops.attention.flash_attention_v3 import flash_attn_with_kvcache
from share_plan import Segment, plan_words
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.tiles import DecodeConfig, DecodePlan, SharedTasks

HEADS, KV_HEADS = 32, 8
_TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 2
_LEVELS = 4

Run = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class SharedShape:
    """Requests, a number a level from the root on: at each, all of a group share so many tokens and part into groups."""

    name: str
    levels: tuple[tuple[int, int], ...]
    """(tokens, groups) at each level."""
    requests: int
    own: int

    def segments(self) -> list[Segment]:
        """What is shared by whom; rows in order."""
        found, start, groups = [], 0, 1
        for tokens, parts in self.levels:
            size = self.requests // groups
            found += [Segment(start, start + tokens, tuple(range(at, at + size))) for at in range(0, self.requests, size)]
            start, groups = start + tokens, groups * parts
        return found

    @property
    def shared(self) -> int:
        """Tokens that a request shares."""
        return sum(tokens for tokens, _ in self.levels)

    @property
    def tokens(self) -> int:
        """Tokens there are, each counted once."""
        return sum(it.stop - it.start for it in self.segments()) + self.requests * self.own


SHAPES = [
    SharedShape("64: 4,096 + 512", ((4096, 64),), 64, 512),
    SharedShape("64: 16,384 + 512", ((16_384, 64),), 64, 512),
    SharedShape("256: 2,048 + 256", ((2048, 256),), 256, 256),
    SharedShape("16: 8,192 + 256", ((8192, 16),), 16, 256),
    SharedShape("8 x 16: 8,192 + 4,096 + 512", ((8192, 8), (4096, 16)), 128, 512),
]


def _share(shape: SharedShape, tensors: VirtualTensors) -> None:
    """Give the requests the same KV where they share it."""
    for segment in shape.segments():
        slots = tensors.slots[list(segment.rows)]
        span = slice(segment.start, segment.stop)
        for slot in slots[1:]:
            tensors.data[slot, span] = tensors.data[slots[0], span]


def _fa3_paged(shape: SharedShape, tensors: VirtualTensors, q: torch.Tensor, lengths: torch.Tensor) -> Run:
    """Pages of one token, scattered; those of a shared stretch in all the tables of its requests."""
    order = torch.randperm(shape.tokens, device="cuda", dtype=torch.int32)
    table = torch.zeros(shape.requests, shape.shared + shape.own, dtype=torch.int32, device="cuda")
    parts = [(it.start, it.stop, it.rows) for it in shape.segments()]
    parts += [(shape.shared, shape.shared + shape.own, (row,)) for row in range(shape.requests)]
    buffers = [
        tuple(torch.empty(shape.tokens, 1, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        for _ in range(tensors.rotated)
    ]
    at = 0
    for start, stop, rows in parts:
        pages = order[at : at + stop - start]
        at += stop - start
        table[list(rows), start:stop] = pages
        for index, pair in enumerate(buffers):
            for buffer, source in zip(pair, tensors.layer(index), strict=True):
                buffer[pages.long(), 0] = source[tensors.slots[rows[0]], start:stop]
    cu_seqlens = torch.arange(shape.requests + 1, dtype=torch.int32, device="cuda")
    schedule = get_scheduler_metadata(
        batch_size=shape.requests,
        max_seqlen_q=1,
        max_seqlen_k=shape.shared + shape.own,
        num_heads=HEADS,
        num_heads_k=KV_HEADS,
        headdim=HEAD_DIM,
        cache_seqlens=lengths,
        qkv_dtype=q.dtype,
        cu_seqlens_q=cu_seqlens,
        page_size=1,
        causal=True,
    )

    def run(index: int) -> torch.Tensor:
        k, v = buffers[index]
        return flash_attn_with_kvcache(
            q,
            k,
            v,
            cache_seqlens=lengths,
            page_table=table,
            cu_seqlens_q=cu_seqlens,
            max_seqlen_q=1,
            softmax_scale=HEAD_DIM**-0.5,
            causal=True,
            scheduler_metadata=schedule,
        )

    return run


def _fa3_cascade(shape: SharedShape, tensors: VirtualTensors, q: torch.Tensor) -> Run:
    """Over the virtual tensors, as a contiguous cache."""
    slots = tensors.slots.int()
    all_rows = torch.tensor([0, shape.requests], dtype=torch.int32, device="cuda")
    each_row = torch.arange(shape.requests + 1, dtype=torch.int32, device="cuda")
    prefix = torch.tensor([shape.shared], dtype=torch.int32, device="cuda")
    own = torch.full((shape.requests,), shape.own, dtype=torch.int32, device="cuda")
    options = {"softmax_scale": HEAD_DIM**-0.5, "return_softmax_lse": True}

    def run(index: int) -> torch.Tensor:
        k, v = tensors.layer(index)
        together, together_lse, *_ = flash_attn_with_kvcache(
            q,
            k[:, : shape.shared],
            v[:, : shape.shared],
            cache_seqlens=prefix,
            cache_batch_idx=slots[:1],
            cu_seqlens_q=all_rows,
            max_seqlen_q=shape.requests,
            causal=False,
            **options,
        )
        alone, alone_lse, *_ = flash_attn_with_kvcache(
            q,
            k[:, shape.shared :],
            v[:, shape.shared :],
            cache_seqlens=own,
            cache_batch_idx=slots,
            cu_seqlens_q=each_row,
            max_seqlen_q=1,
            causal=True,
            **options,
        )
        return merge_state_v2(together, together_lse.T.contiguous(), alone, alone_lse.T.contiguous())[0]

    return run


def _triton(
    shape: SharedShape,
    tensors: VirtualTensors,
    q: torch.Tensor,
    lengths: torch.Tensor,
    config: DecodeConfig | None = None,
    members: int = 16,
    workers: int = 16,
) -> Run:
    group = HEADS // KV_HEADS
    sizes = {"kv_heads": KV_HEADS, "group": group, "head_dim": HEAD_DIM, "v_head_dim": HEAD_DIM, "itemsize": 2}
    sizes |= {"max_batch": shape.requests, "device": "cuda", "config": config}
    sizes |= {"multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count}
    shared = SharedTasks(
        max_batch=shape.requests,
        max_tasks=max(16, _LEVELS * shape.requests // 2),
        max_levels=_LEVELS,
        max_places=_LEVELS * shape.requests + workers * members,
        members=members,
        workers=workers,
        heads=HEADS,
        v_head_dim=HEAD_DIM,
        device="cuda",
    )
    plan = DecodePlan(**sizes, shared=shared)
    tile = plan.config(shape.requests).tile
    rows = list(range(shape.requests))
    shared.copy(plan_words(shared, shape.segments(), tensors.slots.tolist(), rows, tile=tile))
    plan.update(lengths)
    out = torch.full_like(q, float("nan"))

    def run(index: int) -> torch.Tensor:
        k, v = tensors.layer(index)
        decode_attention(q, k, v, out, tensors.slots, lengths, plan, scaling=HEAD_DIM**-0.5)
        return out

    return run


_SWEPT = {
    f"tile {tile}, {stages}/{shared_stages} stages, {members} members, {workers} workers": (
        DecodeConfig(tile, 4, stages, 1, shared_stages),
        members,
        workers,
    )
    for tile, stages, shared_stages, members, workers in (
        (64, 4, 2, 16, 16),
        (64, 4, 3, 16, 16),
        (64, 3, 3, 16, 16),
        (64, 4, 3, 16, 32),
        (64, 4, 2, 8, 16),
        (128, 4, 3, 16, 16),
    )
}


def measure(sweep: bool) -> list[dict[str, Any]]:
    """A row a shape, times in microseconds; with `sweep`, several configurations of the project's kernel beside."""
    ceiling = read_ceiling()
    rows = []
    for shape in SHAPES:
        length = shape.shared + shape.own
        tensors = VirtualTensors([length] * shape.requests, KV_HEADS)
        _share(shape, tensors)
        lengths = torch.full((shape.requests,), length, dtype=torch.int32, device="cuda")
        q = torch.randn(shape.requests, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        sides = {"fa3_page1": _fa3_paged(shape, tensors, q, lengths), "triton": _triton(shape, tensors, q, lengths)}
        if len(shape.levels) == 1:
            sides["fa3_cascade"] = _fa3_cascade(shape, tensors, q)
        if sweep:
            sides |= {name: _triton(shape, tensors, q, lengths, *its) for name, its in _SWEPT.items()}
        expected = sides["fa3_page1"](0).clone()
        for name, run in sides.items():
            error = relative_error(run(0), expected)
            assert error < 2e-2, f"{shape.name}: {name} disagrees by {error}"
        seconds = sides_seconds({name: rotated(run, tensors) for name, run in sides.items()})
        row: dict[str, Any] = {"shape": shape.name, "floor_us": shape.tokens * _TOKEN_BYTES / ceiling * 1e6}
        row |= {f"{name}_us": its * 1e6 for name, its in seconds.items() if name not in _SWEPT}
        if sweep:
            row["sweep"] = {name: seconds[name] * 1e6 for name in _SWEPT}
            for name in _SWEPT:
                print(f"  {shape.name}: {seconds[name] * 1e6:.1f} us {name}", flush=True)
        row["ratio"] = row["fa3_page1_us"] / row["triton_us"]
        rows.append(row)
        print({name: value if isinstance(value, str) else round(value, 2) for name, value in row.items() if name != "sweep"}, flush=True)
        del tensors, sides
        torch.cuda.empty_cache()
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    columns = ("FA3 page 1", "FA3 cascade", "Triton", "FA3 page 1 / Triton", "cascade / Triton", "floor")
    shown = Table("requests: shared + own, us", *columns)
    for row in rows:
        cascade = row.get("fa3_cascade_us")
        shown.add_row(
            row["shape"],
            f"{row['fa3_page1_us']:,.1f}",
            "" if cascade is None else f"{cascade:,.1f}",
            f"{row['triton_us']:,.1f}",
            f"{row['ratio']:.2f}",
            "" if cascade is None else f"{cascade / row['triton_us']:.2f}",
            f"{row['floor_us']:,.1f}",
        )
    return shown
