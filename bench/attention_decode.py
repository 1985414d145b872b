# SPDX-License-Identifier: Apache-2.0
"""Decode: one new token a request. The floor is the KV's bytes at the rate of a plain read, in the same run.

The project's kernel for Hopper is measured by itself, and as a server runs it by default: ready to read once what
requests share, though these share nothing; and so is the one in Triton, which other GPUs and other heads have.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from fa3_paged import paged_decode
from gpu_timing import graph_seconds, read_ceiling, sides_seconds
from kv_layouts import HEAD_DIM, Paged, VirtualTensors, relative_error, rotated
from rich.table import Table
from sglang.kernels.ops.attention.flash_attention_v3 import flash_attn_with_kvcache
from vt_sglang.triton_kernels import decode_hopper, shared_hopper
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.decode_plan import SHARED_ROWS, DecodeConfig, DecodePlan, SharedTasks


@dataclass(frozen=True)
class DecodeShape:
    """A batch of requests with one new token each."""

    name: str
    lengths: tuple[int, ...]
    heads: int = 32
    kv_heads: int = 8

    @property
    def bytes(self) -> int:
        """Bytes of K and V that one layer's attention has to read."""
        return sum(self.lengths) * self.kv_heads * HEAD_DIM * 2 * 2


def _decode_shapes() -> list[DecodeShape]:
    draw = random.Random(1)
    ragged = tuple(draw.randint(100, 30_000) for _ in range(128))
    lengths = [(1, 32_768), (8, 8_192), (32, 4_096), (64, 8_192), (256, 1_024)]
    shapes = []
    for heads, kv_heads in ((32, 8), (8, 1)):
        suffix = "" if kv_heads == 8 else ", 8 heads on 1"
        shapes += [DecodeShape(f"{b} x {n:,}{suffix}", (n,) * b, heads, kv_heads) for b, n in lengths]
        shapes.append(DecodeShape(f"128 ragged{suffix}", ragged, heads, kv_heads))
    return shapes


def _own(
    shape: DecodeShape,
    tensors: VirtualTensors,
    q: torch.Tensor,
    lengths: torch.Tensor,
    config: DecodeConfig | None = None,
    *,
    ready: bool = False,
) -> Callable[[int], torch.Tensor]:
    """config: of the kernel in Triton, if it is none for Hopper. ready: to read once what requests share."""
    batch, group = len(shape.lengths), shape.heads // shape.kv_heads
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    plan = DecodePlan(
        max_batch=batch,
        kv_heads=shape.kv_heads,
        group=group,
        head_dim=HEAD_DIM,
        v_head_dim=HEAD_DIM,
        itemsize=2,
        multiprocessors=multiprocessors,
        device="cuda",
        config=config,
        shared=_nothing_shared(batch, group, multiprocessors // shape.kv_heads) if ready else None,
    )
    plan.update(tensors.slots, lengths)
    out = torch.full_like(q, float("nan"))

    def run(index: int) -> torch.Tensor:
        k, v = tensors.layer(index)
        decode_attention(q, k, v, out, tensors.slots, lengths, plan, scaling=HEAD_DIM**-0.5)
        return out

    return run


def _nothing_shared(batch: int, group: int, workers: int) -> SharedTasks:
    """The buffers of a server's plans, as they are before any."""
    members = SHARED_ROWS // group
    return SharedTasks(
        max_batch=batch,
        max_tasks=batch,
        max_levels=4,
        max_places=batch + (workers - 1) * min(members, batch),
        members=members,
        workers=workers,
        tile=shared_hopper.TILE,
        device="cuda",
    )


def _fa3(tensors: VirtualTensors, q: torch.Tensor, lengths: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """FlashAttention-3 over the same virtual tensors, as `--vtensor-decode-kernel fa3` calls it."""
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device="cuda")
    slots = tensors.slots.int()

    def run(index: int) -> torch.Tensor:
        k, v = tensors.layer(index)
        return flash_attn_with_kvcache(
            q,
            k,
            v,
            cache_seqlens=lengths,
            cache_batch_idx=slots,
            cu_seqlens_q=starts,
            max_seqlen_q=1,
            softmax_scale=HEAD_DIM**-0.5,
            causal=True,
        )

    return run


_SWEPT = [DecodeConfig(*it) for it in ((64, 4, 3, 2), (64, 4, 3, 1), (64, 4, 4, 1))]


def measure(sweep: bool) -> list[dict[str, Any]]:
    """A row a shape, times in microseconds; with `sweep`, many configurations of the kernel in Triton beside."""
    ceiling = read_ceiling()
    print(f"read ceiling: {ceiling / 1e12:.2f} TB/s")
    rows = []
    for shape in _decode_shapes():
        tensors = VirtualTensors(shape.lengths, shape.kv_heads)
        lengths = torch.tensor(shape.lengths, dtype=torch.int32, device="cuda")
        q = torch.randn(len(shape.lengths), shape.heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        row: dict[str, Any] = {"shape": shape.name, "layers": tensors.layers}
        row["floor_us"] = shape.bytes / ceiling * 1e6
        sides = {
            f"fa3_page{page}": paged_decode(q, paged.buffers, paged.table, lengths, max(shape.lengths))
            for page, paged in ((page, Paged(shape.lengths, tensors, page)) for page in (1, 64))
        }
        sides |= {
            "fa3_contiguous": _fa3(tensors, q, lengths),
            "triton": _own(shape, tensors, q, lengths),
            "hopper": _own(shape, tensors, q, lengths, decode_hopper.CONFIG),
            "ready": _own(shape, tensors, q, lengths, decode_hopper.CONFIG, ready=True),
        }
        expected = sides["fa3_page1"](0).clone()
        for name in ("fa3_contiguous", "triton", "hopper", "ready"):
            error = relative_error(sides[name](0), expected)
            assert error < 2e-2, f"{shape.name}: {name} disagrees with FlashAttention-3 on pages by {error}"
        seconds = sides_seconds({name: rotated(run, tensors) for name, run in sides.items()})
        row |= {f"{name}_us": its * 1e6 for name, its in seconds.items()}
        if sweep:
            swept = []
            for config in _SWEPT:
                run = _own(shape, tensors, q, lengths, config)
                error = relative_error(run(0), expected)
                assert error < 2e-2, f"{shape.name}: {config}: kernels disagree by {error}"
                swept.append((graph_seconds(rotated(run, tensors), 7) * 1e6, config))
            swept.sort(key=lambda it: it[0])
            row["sweep"] = [{"us": us} | asdict(config) for us, config in swept]
            for us, config in swept[:5]:
                print(f"  {shape.name}: {us:.1f} us {config}", flush=True)
        best = min(row["fa3_page1_us"], row["fa3_page64_us"])
        row["ratio"] = best / row["hopper_us"]
        row["ready_ratio"] = best / row["ready_us"]
        rows.append(row)
        print(f"{shape.name}: FA3 {best:.1f}, own {row['hopper_us']:.1f}, floor {row['floor_us']:.1f}", flush=True)
        del tensors, sides, expected
        run = None
        torch.cuda.empty_cache()
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    shown = Table(
        "decode, us", "FA3 page 1", "FA3 page 64", "FA3 contiguous", "Triton", "Hopper", "ready to share",
        "best paged FA3 / Hopper", "/ ready", "floor", "of floor",
    )  # fmt: skip
    for row in rows:
        sides = ("fa3_page1", "fa3_page64", "fa3_contiguous", "triton", "hopper", "ready")
        numbers = [row[f"{side}_us"] for side in sides]
        shown.add_row(
            row["shape"],
            *(f"{number:,.1f}" for number in numbers),
            f"{row['ratio']:.3f}",
            f"{row['ready_ratio']:.3f}",
            f"{row['floor_us']:,.1f}",
            f"{row['floor_us'] / row['hopper_us']:.0%}",
        )
    return shown
