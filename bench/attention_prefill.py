# SPDX-License-Identifier: Apache-2.0
"""Prefix-prefill: several new tokens a request behind a prefix."""

import itertools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from gpu_timing import graph_seconds, matmul_ceiling, read_ceiling, sides_seconds
from kv_layouts import Paged, VirtualTensors, relative_error, rotated
from prefill_shapes import HEAD_DIM, PrefillShape, prefill_shapes
from rich.table import Table
from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd
from sglang.kernels.ops.attention.flash_attention_v3 import flash_attn_with_kvcache
from vt_sglang.triton_kernels.prefill import PrefillConfig, PrefillPlan, prefill_attention
from vt_sglang.triton_kernels.prefill_hopper import prefill_hopper_attention
from vt_sglang.triton_kernels.prefill_hopper_plan import HopperPlan, on_hopper

Run = Callable[[int], torch.Tensor]

CHOICES = {"hopper": "Hopper", "fa3_contiguous": "FA3"}
"""How the sides that `auto` chooses from are shown."""


class Batch:
    """What every side gets: queries, and where they begin."""

    def __init__(self, shape: PrefillShape) -> None:
        new = torch.tensor([new for _, new in shape.requests])
        self.query_starts = torch.zeros(len(new) + 1, dtype=torch.int32, device="cuda")
        self.query_starts[1:] = new.cumsum(0)
        self.tokens = int(new.sum())
        self.longest = int(new.max())
        self.lengths = torch.tensor(shape.lengths, dtype=torch.int32, device="cuda")
        self.q = torch.randn(self.tokens, shape.heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        self.tensors = VirtualTensors(shape.lengths, shape.kv_heads)


def _fa3(batch: Batch, layer: Callable[[int], tuple[torch.Tensor, torch.Tensor]], **where: torch.Tensor) -> Run:
    def run(index: int) -> torch.Tensor:
        k, v = layer(index)
        return flash_attn_with_kvcache(
            batch.q,
            k,
            v,
            cache_seqlens=batch.lengths,
            cu_seqlens_q=batch.query_starts,
            max_seqlen_q=batch.longest,
            softmax_scale=HEAD_DIM**-0.5,
            causal=True,
            **where,
        )

    return run


def _sglang_triton(shape: PrefillShape, batch: Batch, paged: Paged) -> Run:
    """SGLang's extend kernel: the prefix by an index of token slots, the new tokens from where they were computed."""
    prefixes = [prefix for prefix, _ in shape.requests]
    starts = torch.zeros(len(prefixes) + 1, dtype=torch.int32, device="cuda")
    starts[1:] = torch.tensor(prefixes).cumsum(0)
    pairs = list(zip(paged.table, prefixes, strict=True))
    indices = torch.cat([row[:prefix] for row, prefix in pairs]).long()
    own = torch.cat([row[prefix:length] for (row, prefix), length in zip(pairs, shape.lengths, strict=True)]).long()
    new = [tuple(side.squeeze(1)[own] for side in pair) for pair in paged.buffers]
    out = torch.full_like(batch.q, float("nan"))

    def run(index: int) -> torch.Tensor:
        k, v = paged.buffers[index]
        extend_attention_fwd(
            batch.q,
            *new[index],
            out,
            k.squeeze(1),
            v.squeeze(1),
            batch.query_starts,
            starts,
            indices,
            None,
            True,
            None,
            batch.longest,
            1.0,
            1.0,
            HEAD_DIM**-0.5,
        )
        return out

    return run


def _triton(shape: PrefillShape, batch: Batch, config: PrefillConfig | None = None) -> Run:
    plan = PrefillPlan(
        group=shape.heads // shape.kv_heads,
        head_dim=HEAD_DIM,
        v_head_dim=HEAD_DIM,
        itemsize=2,
        device="cuda",
        config=config,
    )
    plan.update(batch.query_starts, batch.tokens)
    out = torch.full_like(batch.q, float("nan"))

    def run(index: int) -> torch.Tensor:
        k, v = batch.tensors.layer(index)
        prefill_attention(
            batch.q,
            k,
            v,
            out,
            batch.tensors.slots,
            batch.lengths,
            batch.query_starts,
            plan,
            scaling=HEAD_DIM**-0.5,
        )
        return out

    return run


def _hopper(shape: PrefillShape, batch: Batch) -> Run:
    plan = HopperPlan(
        group=shape.heads // shape.kv_heads, kv_heads=shape.kv_heads, head_dim=HEAD_DIM, device=batch.q.device
    )
    plan.update([new for _, new in shape.requests], [prefix for prefix, _ in shape.requests])
    assert plan.short_requests == 0
    out = torch.full_like(batch.q, float("nan"))

    def run(index: int) -> torch.Tensor:
        k, v = batch.tensors.layer(index)
        prefill_hopper_attention(batch.q, k, v, out, batch.tensors.slots, batch.lengths, plan, scaling=HEAD_DIM**-0.5)
        return out

    return run


def _configs() -> list[PrefillConfig]:
    return [
        PrefillConfig(rows, tile, warps, stages)
        for rows, tile, warps, stages in itertools.product((64, 128), (64, 128), (4, 8), (2, 3, 4))
        if (rows + 2 * tile * stages) * HEAD_DIM * 2 <= 227 * 2**10 and (warps == 8 or rows == 64)
    ]


def measure(sweep: bool, short: bool = False) -> list[dict[str, Any]]:
    """A row a shape, times in microseconds; with `sweep`, many configurations of the project's Triton kernel beside;
    with `short`, other shapes."""
    flops, read = matmul_ceiling(), read_ceiling()
    print(f"matrix products: {flops / 1e12:.0f} TFLOP/s; read ceiling: {read / 1e12:.2f} TB/s")
    rows = []
    for shape in prefill_shapes(short):
        batch = Batch(shape)
        row: dict[str, Any] = {"shape": shape.name, "layers": batch.tensors.layers, "gigaflop": shape.flops / 1e9}
        row["floor_us"] = shape.floor_seconds(flops, read) * 1e6
        scattered = Paged(shape.lengths, batch.tensors, 1)
        sides = {
            "fa3_page1": _fa3(batch, scattered.buffers.__getitem__, page_table=scattered.table),
            "sglang_triton": _sglang_triton(shape, batch, scattered),
            "fa3_contiguous": _fa3(batch, batch.tensors.layer, cache_batch_idx=batch.tensors.slots.int()),
            "triton": _triton(shape, batch),
        }
        if on_hopper(batch.q.device):
            sides["hopper"] = _hopper(shape, batch)
        expected = sides["fa3_page1"](0).clone()
        for name, run in sides.items():
            error = relative_error(run(0), expected)
            assert error < 2e-2, f"{shape.name}: {name} disagrees with FlashAttention-3 by {error}"
        seconds = sides_seconds({name: rotated(run, batch.tensors) for name, run in sides.items()})
        row |= {f"{name}_us": its * 1e6 for name, its in seconds.items()}
        if "hopper" in sides:
            row["auto"] = shape.chosen(torch.cuda.get_device_properties(0).multi_processor_count)
            row["auto_us"] = row[f"{row['auto']}_us"]
        if sweep:
            swept = []
            for config in _configs():
                run = _triton(shape, batch, config)
                error = relative_error(run(0), expected)
                assert error < 2e-2, f"{shape.name}: {config} disagrees by {error}"
                swept.append((graph_seconds(rotated(run, batch.tensors), 7) * 1e6, config))
            swept.sort(key=lambda it: it[0])
            row["sweep"] = [{"us": us} | asdict(config) for us, config in swept]
            for us, config in swept[:4]:
                print(f"  {shape.name}: {us:.1f} us {config}", flush=True)
        rows.append(row)
        times = {name: round(value, 1) for name, value in row.items() if name.endswith("_us")}
        print(times, shape.name, row.get("auto", ""), flush=True)
        del batch, scattered, sides, run
        torch.cuda.empty_cache()
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal: TFLOP/s, what is gained over FlashAttention-3 with pages of one token, what a server's
    `auto` takes, and how near that comes to the floor."""
    shown = Table(
        "prefill, TFLOP/s", "FA3 page 1", "SGLang Triton", "FA3 contiguous", "over page 1", "Triton", "over page 1",
        "Hopper", "over page 1", "over contiguous", "over SGLang's", "auto", "over page 1", "of floor",
    )  # fmt: skip
    for row in rows:
        own = "hopper" if "hopper_us" in row else "triton"

        def rate(side: str, row: dict[str, Any] = row) -> str:
            # gigaflop / microseconds = petaflop/s
            return f"{1e3 * row['gigaflop'] / row[f'{side}_us']:.0f}" if f"{side}_us" in row else ""

        def over(side: str, us: str, row: dict[str, Any] = row) -> str:
            return f"{row[f'{side}_us'] / row[f'{us}_us']:.3f}" if f"{us}_us" in row else ""

        shown.add_row(
            row["shape"],
            rate("fa3_page1"),
            rate("sglang_triton"),
            rate("fa3_contiguous"),
            over("fa3_page1", "fa3_contiguous"),
            rate("triton"),
            over("fa3_page1", "triton"),
            rate("hopper"),
            over("fa3_page1", "hopper"),
            over("fa3_contiguous", "hopper"),
            over("sglang_triton", own),
            CHOICES[row["auto"]] if "auto" in row else "",
            over("fa3_page1", "auto"),
            f"{row['floor_us'] / row.get('auto_us', row['triton_us']):.0%}",
        )
    return shown
