# SPDX-License-Identifier: Apache-2.0
"""Tree-aware decode beside FlashAttention-3: requests that share stretches of tokens.

FlashAttention-3 reads the same pages for all of them, of one token, as SGLang runs it; and, where there is one level of
sharing, as a cascade: the prefix for all requests at once, then each one's own part, then a merge. The floor is each
byte once, at the rate of a plain read in the same run. What shares nothing shows what being ready to share costs.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fa3_paged import paged_decode
from gpu_timing import read_ceiling, sides_seconds
from kv_layouts import HEAD_DIM, VirtualTensors, relative_error, rotated
from rich.table import Table
from sgl_kernel import merge_state_v2
from sglang.kernels.ops.attention.flash_attention_v3 import flash_attn_with_kvcache
from vt_sglang.triton_kernels import decode_hopper, shared_hopper
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.decode_plan import SHARED_READ, SHARED_ROWS, DecodePlan, SharedTasks, shared_tile

from vt_sglang._core import KVCache, SharePlan

HEADS, KV_HEADS = 32, 8
_GROUP = HEADS // KV_HEADS
_TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 2
_LEVELS = 4

Run = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class SharedShape:
    """Requests that share tokens: at each level, from the root on, all of a group share so many, and then part."""

    name: str
    levels: tuple[tuple[int, int], ...]
    """(tokens, groups into which they part) at each level."""
    requests: int
    own: int

    def stretches(self) -> list[tuple[int, int, range]]:
        """(first token, the one behind the last, requests) of what is shared."""
        found, start, groups = [], 0, 1
        for tokens, parts in self.levels:
            size = self.requests // groups
            found += [(start, start + tokens, range(at, at + size)) for at in range(0, self.requests, size)]
            start, groups = start + tokens, groups * parts
        return found

    @property
    def shared(self) -> int:
        """Tokens that a request shares."""
        return sum(tokens for tokens, _ in self.levels)

    @property
    def tokens(self) -> int:
        """Tokens there are, each counted once."""
        return sum(stop - start for start, stop, _ in self.stretches()) + self.requests * self.own


SHAPES = [
    SharedShape("64: 4,096 + 512", ((4096, 64),), 64, 512),
    SharedShape("64: 16,384 + 512", ((16_384, 64),), 64, 512),
    SharedShape("256: 2,048 + 256", ((2048, 256),), 256, 256),
    SharedShape("16: 8,192 + 256", ((8192, 16),), 16, 256),
    SharedShape("8 x 16: 8,192 + 4,096 + 512", ((8192, 8), (4096, 16)), 128, 512),
    SharedShape("8: nothing + 8,192", (), 8, 8192),
    SharedShape("32: nothing + 4,096", (), 32, 4096),
    SharedShape("256: nothing + 1,024", (), 256, 1024),
]


def _share(shape: SharedShape, tensors: VirtualTensors) -> None:
    """Give the requests the same KV where they share it."""
    for start, stop, rows in shape.stretches():
        slots = tensors.slots[list(rows)]
        for slot in slots[1:]:
            tensors.data[slot, start:stop] = tensors.data[slots[0], start:stop]


def _fa3_paged(shape: SharedShape, tensors: VirtualTensors, q: torch.Tensor, lengths: torch.Tensor) -> Run:
    """Pages of one token, scattered; those of a shared stretch in all the tables of its requests."""
    order = torch.randperm(shape.tokens, device="cuda", dtype=torch.int32)
    table = torch.zeros(shape.requests, shape.shared + shape.own, dtype=torch.int32, device="cuda")
    parts = [*shape.stretches()]
    parts += [(shape.shared, shape.shared + shape.own, range(row, row + 1)) for row in range(shape.requests)]
    size = (shape.tokens, 1, KV_HEADS, HEAD_DIM)
    buffers = [
        tuple(torch.empty(size, dtype=torch.bfloat16, device="cuda") for _ in range(2)) for _ in range(tensors.rotated)
    ]
    at = 0
    for start, stop, rows in parts:
        pages = order[at : at + stop - start]
        at += stop - start
        table[list(rows), start:stop] = pages
        for index, pair in enumerate(buffers):
            for buffer, source in zip(pair, tensors.layer(index), strict=True):
                buffer[pages.long(), 0] = source[tensors.slots[rows[0]], start:stop]
    return paged_decode(q, buffers, table, lengths, shape.shared + shape.own)


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


def _tree(shape: SharedShape) -> tuple[KVCache, np.ndarray]:
    """A cache with the shape's requests, each recorded up to its own part, and their slots."""
    page_tokens = 16
    cache = KVCache(
        driver="none",
        page_bytes=page_tokens * _TOKEN_BYTES,
        token_bytes=_TOKEN_BYTES,
        slots=shape.requests + 2,
        slot_tokens=shape.shared + shape.own,
        budget_pages=2 * (shape.tokens // page_tokens + shape.requests * (len(shape.levels) + 2)),
    )
    slots = []
    for row in range(shape.requests):
        tokens: array[int] = array("q")
        for level, (count, _) in enumerate(shape.levels):
            groups = 1
            for _, parts in shape.levels[:level]:
                groups *= parts
            group = row // (shape.requests // groups)
            tokens.extend((level + 1) * 2**40 + group * 2**20 + position for position in range(count))
        node = cache.match(None, tokens)[0]
        cache.lock(node)
        slot = cache.bind(None, node, shape.shared + shape.own)[0]
        cache.record(slot, tokens, len(tokens))
        cache.unlock(node)
        slots.append(slot)
    return cache, np.array(slots)


def _own(
    shape: SharedShape, tensors: VirtualTensors, q: torch.Tensor, lengths: torch.Tensor, sharing: str | None
) -> Run:
    """The project's decode. sharing: "hopper" or "triton", by which kernel tasks are read; None: nothing is shared."""
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    shared = None
    if sharing is not None:
        hopper = sharing == "hopper"
        members = SHARED_ROWS // _GROUP
        tile = shared_hopper.TILE if hopper else shared_tile(HEAD_DIM, HEAD_DIM, 2, "cuda")
        workers = multiprocessors // KV_HEADS
        cache, slots = _tree(shape)
        plan = SharePlan(
            cache,
            max_batch=shape.requests,
            max_workers=workers,
            members_per_task=members,
            members_per_read=SHARED_READ * members,
            max_levels=_LEVELS,
        )
        shared = SharedTasks(
            max_batch=shape.requests,
            max_tasks=plan.max_tasks,
            max_levels=_LEVELS,
            max_places=plan.max_places,
            members=members,
            workers=workers,
            tile=tile,
            device="cuda",
        )
        words = np.zeros(plan.size, dtype=np.int32)
        plan.update(slots, words, tile, workers)
        # The core's slots are not the tensors'.
        row_of = {int(slot): row for row, slot in enumerate(slots)}
        tasks = words[plan.tasks_at :].reshape(-1)[: 8 * int(words[0])].reshape(-1, 8)
        tasks[:, 0] = [int(tensors.slots[row_of[int(slot)]]) for slot in tasks[:, 0]]
        shared.words.copy_(torch.from_numpy(words))
    decode = DecodePlan(
        max_batch=shape.requests,
        kv_heads=KV_HEADS,
        group=_GROUP,
        head_dim=HEAD_DIM,
        v_head_dim=HEAD_DIM,
        itemsize=2,
        multiprocessors=multiprocessors,
        device="cuda",
        config=None if sharing == "triton" else decode_hopper.CONFIG,
        shared=shared,
    )
    decode.update(tensors.slots, lengths)
    out = torch.full_like(q, float("nan"))

    def run(index: int) -> torch.Tensor:
        k, v = tensors.layer(index)
        decode_attention(q, k, v, out, tensors.slots, lengths, decode, scaling=HEAD_DIM**-0.5)
        return out

    return run


def measure(sweep: bool) -> list[dict[str, Any]]:
    """A row a shape, times in microseconds. ValueError for a sweep: there is one configuration."""
    if sweep:
        raise ValueError("shared: there is nothing to sweep; leave --sweep out")
    ceiling = read_ceiling()
    rows = []
    for shape in SHAPES:
        length = shape.shared + shape.own
        tensors = VirtualTensors([length] * shape.requests, KV_HEADS)
        _share(shape, tensors)
        lengths = torch.full((shape.requests,), length, dtype=torch.int32, device="cuda")
        q = torch.randn(shape.requests, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        sides = {
            "fa3_page1": _fa3_paged(shape, tensors, q, lengths),
            "plain": _own(shape, tensors, q, lengths, None),
            "triton": _own(shape, tensors, q, lengths, "triton"),
            "hopper": _own(shape, tensors, q, lengths, "hopper"),
        }
        if len(shape.levels) == 1:
            sides["fa3_cascade"] = _fa3_cascade(shape, tensors, q)
        expected = sides["fa3_page1"](0).clone()
        for name, run in sides.items():
            error = relative_error(run(0), expected)
            assert error < 2e-2, f"{shape.name}: {name} disagrees by {error}"
        seconds = sides_seconds({name: rotated(run, tensors) for name, run in sides.items()})
        row: dict[str, Any] = {"shape": shape.name, "layers": tensors.layers}
        row["floor_us"] = shape.tokens * _TOKEN_BYTES / ceiling * 1e6
        row |= {f"{name}_us": its * 1e6 for name, its in seconds.items()}
        row["ratio"] = row["fa3_page1_us"] / row["hopper_us"]
        rows.append(row)
        print({name: value if isinstance(value, str) else round(value, 2) for name, value in row.items()}, flush=True)
        del tensors, sides, run, expected
        torch.cuda.empty_cache()
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    columns = ("FA3 page 1", "FA3 cascade", "plain", "Triton", "Hopper", "FA3 / Hopper", "cascade / Hopper", "floor")
    shown = Table("requests: shared + own, us", *columns)
    for row in rows:
        cascade = row.get("fa3_cascade_us")
        shown.add_row(
            row["shape"],
            f"{row['fa3_page1_us']:,.1f}",
            "" if cascade is None else f"{cascade:,.1f}",
            *(f"{row[f'{side}_us']:,.1f}" for side in ("plain", "triton", "hopper")),
            f"{row['ratio']:.2f}",
            "" if cascade is None else f"{cascade / row['hopper_us']:.2f}",
            f"{row['floor_us']:,.1f}",
        )
    return shown
