# SPDX-License-Identifier: Apache-2.0
"""Try variants of the Hopper prefill kernel on a GPU: first each for correctness, in a process of its own with a time
limit (a deadlock costs no more), then those that passed for time.

    python3 bench/prefill_try.py [name ...]
"""

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, "/tmp/site")

import torch
from vt_sglang.triton_kernels.prefill_hopper import HopperConfig, HopperPlan, hopper_prefill_attention

CHECK_SECONDS, TIME_SECONDS = 50, 75

VARIANTS = {
    "base": HopperConfig(),
    "no_turns": HopperConfig(turns=False),
    "no_overlap": HopperConfig(overlap=False),
    "neither": HopperConfig(overlap=False, turns=False),
    "one_consumer": HopperConfig(consumers=1, rows=128),
    "stages3": HopperConfig(stages=3, store=2),
    "stages3_direct": HopperConfig(stages=3, store=0),
    "stages2_store2": HopperConfig(store=2),
    "direct": HopperConfig(store=0),
    "grid": HopperConfig(persistent=False),
    "tile64": HopperConfig(tile=64, stages=4),
    "eager": HopperConfig(lazy=False),
    "q_pointers": HopperConfig(q_tma=False),
}

RAGGED = [
    (0, 128), (0, 129), (0, 300), (127, 1), (128, 1), (200, 56), (255, 1), (256, 128), (131, 130), (0, 0), (1000, 33),
    (639, 61), (383, 97), (128, 128), (1, 255), (95, 33),
]  # fmt: skip


def _check(
    config: HopperConfig, requests: list[tuple[int, int]], *, kv_heads: int, group: int, dtype: torch.dtype, sinks: bool
) -> float:
    """The largest error against float32, over what the dtype's rounding allows; everything past a length is NaN."""
    torch.manual_seed(1)
    dim, heads = 128, kv_heads * group
    lengths = [prefix + new for prefix, new in requests]
    tokens = max(lengths) + 130
    arena = torch.full((len(requests) + 2, tokens, 2, 2, kv_heads, dim), float("nan"), dtype=dtype, device="cuda")
    slots = torch.randperm(len(requests) + 2, device="cuda")[: len(requests)]
    for slot, length in zip(slots.tolist(), lengths, strict=True):
        arena[slot, :length, 1] = torch.randn(length, 2, kv_heads, dim, device="cuda").to(dtype)
    k, v = arena[:, :, 1, 0], arena[:, :, 1, 1]
    starts = [0]
    for _, new in requests:
        starts.append(starts[-1] + new)
    q = (torch.randn(starts[-1], heads, dim, device="cuda") * 2).to(dtype)
    out = torch.full_like(q, float("nan"))
    sink = torch.linspace(-2, 3, heads, device="cuda") if sinks else None
    plan = HopperPlan(group=group, device="cuda", config=config)
    query_starts = torch.tensor(starts, dtype=torch.int32, device="cuda")
    on_device = torch.tensor(lengths, device="cuda")
    plan.update(query_starts, on_device, slots, tokens=starts[-1] + 40, slot_tokens=tokens)
    hopper_prefill_attention(q, k, v, out, plan, scaling=dim**-0.5, sinks=sink)
    torch.cuda.synchronize()
    worst = 0.0
    for row, (slot, length) in enumerate(zip(slots.tolist(), lengths, strict=True)):
        first, last = starts[row], starts[row + 1]
        if first == last:
            continue
        keys = k[slot, :length].float().repeat_interleave(group, 1)
        values = v[slot, :length].float().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q[first:last].float(), keys) * dim**-0.5
        positions = torch.arange(length - (last - first), length, device="cuda")
        scores.masked_fill_(torch.arange(length, device="cuda")[None] > positions[:, None], float("-inf"))
        if sink is not None:
            scores = torch.cat([scores, sink[:, None, None].expand(-1, last - first, 1)], 2)
            values = torch.cat([values, torch.zeros_like(values[:1])])
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        bound = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype] * max(1.0, expected.abs().max().item())
        error = (out[first:last].float() - expected).abs().max().item() / bound
        if not error <= 1:
            bad = ~((out[first:last].float() - expected).abs() <= bound)
            where = bad.nonzero()
            print(f"  request {row} {requests[row]}: error {error}, {bad.float().mean():.3f} bad, first {where[0].tolist()}, "
                  f"last {where[-1].tolist()}, nan {out[first:last].isnan().float().mean():.3f}", flush=True)  # fmt: skip
        worst = max(worst, error) if error == error else float("nan")
    return worst


def check(name: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    config = VARIANTS[name]
    cases = [
        ("ragged", RAGGED, 2, 4, torch.bfloat16, False),
        ("fp16", RAGGED, 2, 4, torch.float16, False),
        ("long", [(0, 2048), (3000, 777), (0, 1500)], 8, 4, torch.bfloat16, False),
        ("short parts", [(700 + 13 * index, 1 + 7 * index % 90) for index in range(40)], 8, 4, torch.bfloat16, False),
    ]
    if name == "base":
        cases += [
            ("sinks", RAGGED, 2, 4, torch.bfloat16, True),
            ("group 8", RAGGED, 1, 8, torch.bfloat16, False),
            ("group 1", RAGGED, 3, 1, torch.bfloat16, False),
        ]
    failed = False
    for what, requests, kv_heads, group, dtype, sinks in cases:
        start = time.time()
        error = _check(config, requests, kv_heads=kv_heads, group=group, dtype=dtype, sinks=sinks)
        failed |= not error <= 1
        print(f"  {name}: {what}: error {error:.3f} of the bound, {time.time() - start:.1f} s", flush=True)
    sys.exit(int(failed))


def measure(names: list[str]) -> None:
    from attention_prefill import Batch, PrefillShape, _fa3, _triton
    from gpu_timing import sides_seconds
    from kv_layouts import HEAD_DIM, Paged, relative_error, rotated

    print(torch.cuda.get_device_name(), flush=True)
    shapes = [
        PrefillShape("1: 0 + 8192", ((0, 8192),)),
        PrefillShape("1: 32768 + 512", ((32_768, 512),)),
        PrefillShape("4: 8192 + 1024", ((8192, 1024),) * 4),
        PrefillShape("16: 4096 + 128", ((4096, 128),) * 16),
    ]
    for shape in shapes:
        batch = Batch(shape)
        scattered = Paged(shape.lengths, batch.tensors, 1)
        sides = {
            "fa3_contiguous": _fa3(batch, batch.tensors.layer, cache_batch_idx=batch.tensors.slots.int()),
            "fa3_page1": _fa3(batch, scattered.buffers.__getitem__, page_table=scattered.table),
            "plain": _triton(shape, batch),
        }
        expected = sides["fa3_page1"](0).clone()
        plans = []
        for name in names:
            plan = HopperPlan(group=shape.heads // shape.kv_heads, device="cuda", config=VARIANTS[name])
            plan.update(
                batch.query_starts, batch.lengths, batch.tensors.slots, tokens=batch.tokens, slot_tokens=max(shape.lengths)
            )
            out = torch.full_like(batch.q, float("nan"))
            plans.append(plan)

            def run(index: int, plan: HopperPlan = plan, out: torch.Tensor = out) -> torch.Tensor:
                k, v = batch.tensors.layer(index)
                hopper_prefill_attention(batch.q, k, v, out, plan, scaling=HEAD_DIM**-0.5)
                return out

            sides[name] = run
        for name, run in list(sides.items()):
            error = relative_error(run(0), expected)
            if not error < 2e-2:
                print(f"  {shape.name}: {name} is off by {error}", flush=True)
                del sides[name]
        seconds = sides_seconds({name: rotated(run, batch.tensors) for name, run in sides.items()}, 9)
        print(f"{shape.name}   TFLOP/s, over FA3 contiguous, over FA3 page 1", flush=True)
        for name, its in seconds.items():
            print(f"  {name:16} {shape.flops / its / 1e12:7.1f} {seconds['fa3_contiguous'] / its:6.3f} "
                  f"{seconds['fa3_page1'] / its:6.3f}", flush=True)  # fmt: skip
        del batch, scattered, sides, run, expected
        torch.cuda.empty_cache()


def _child(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )


def _outcome(process: subprocess.Popen[str], deadline: float, what: str) -> bool:
    try:
        output, _ = process.communicate(timeout=max(0.1, deadline - time.time()))
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += f"  {what}: out of time\n"
    lines = output.splitlines()
    print("\n".join(lines if process.returncode == 0 else lines[-25:]), flush=True)
    return process.returncode == 0


def main(names: list[str]) -> None:
    start = time.time()
    children = {name: _child(["--check", name]) for name in names}
    deadline = time.time() + CHECK_SECONDS
    passed = [name for name, child in children.items() if _outcome(child, deadline, name)]
    print(f"passed: {' '.join(passed)}; {time.time() - start:.0f} s", flush=True)
    if not _outcome(_child(["--time", *passed]), time.time() + TIME_SECONDS, "timing"):
        print("timing failed")
    print(f"{time.time() - start:.0f} s in all", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        check(sys.argv[2])
    elif sys.argv[1:2] == ["--time"]:
        measure(sys.argv[2:])
    else:
        main(sys.argv[1:] or list(VARIANTS))
