# SPDX-License-Identifier: Apache-2.0
"""What bench/kernels.py shows and reckons; it measures on a GPU only."""

import importlib
import io
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import kv_layouts
import pytest
import torch
from prefill_shapes import PrefillShape, prefill_shapes
from rich.console import Console

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"
PROCESSORS = 132
"""Of an H100, and of an H200."""


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The modules of prefill and of decode. FlashAttention-3 is in SGLang's kernels for GPUs only."""
    pytest.importorskip("sglang")
    missing = SimpleNamespace(get_scheduler_metadata=None)
    monkeypatch.setitem(sys.modules, "sgl_kernel.flash_attn", missing)
    return importlib.import_module("attention_prefill"), importlib.import_module("attention_decode")


def _shown(table: Any) -> str:
    out = io.StringIO()
    Console(width=400, file=out).print(table)
    return out.getvalue()


def test_without_kernels_for_gpus_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(RESULTS.parent / "kernels.py")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "attention_decode", None)
    monkeypatch.setattr(sys, "argv", ["kernels.py", "decode"])
    with pytest.raises(SystemExit, match=r"attention_decode.*It needs SGLang with its kernels for GPUs"):
        runpy.run_path(script, run_name="__main__")
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 0
    assert "decode,prefill,shared" in capsys.readouterr().out


H100_BYTES = 85_017_755_648


def test_layers_of_the_arena_on_an_h100(operations: tuple[ModuleType, ModuleType]) -> None:
    """All 32, but where so many do not fit."""
    found = {}
    for shape in operations[1]._decode_shapes():
        layers, rotated = kv_layouts.arena_layers(shape.bytes, H100_BYTES)
        assert 2 <= rotated <= layers
        assert layers * shape.bytes < 0.42 * H100_BYTES
        if layers < 32:
            found[shape.name] = layers
    assert found == {"64 x 8,192": 16, "128 ragged": 4}


def test_the_arena_has_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(total_memory=1_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    tensors = kv_layouts.VirtualTensors([300, 200], 1, "cpu")  # 256,000 bytes a layer: the least there may be
    assert (tensors.layers, tensors.rotated) == (2, 2)
    key, value = tensors.layer(1)
    assert key.shape == value.shape
    assert key.shape[2:] == (1, 128)
    assert key.shape[1] >= 300 + 192  # what FlashAttention-3 may read behind
    assert key.stride(1) == value.stride(1) == 2 * 2 * 128
    first, second = (key[slot] for slot in tensors.slots)
    assert first[:300].float().std() > 0.9
    assert second[:200].float().std() > 0.9
    assert not first[300:492].any()
    assert not second[200:392].any()
    assert 0 < (value[tensors.slots[0], :300] == key[tensors.slots[0], :300]).sum() < 300


@pytest.mark.parametrize("operation", ["decode", "prefill", "shared"])
def test_without_a_gpu_it_says_so_first(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that kernels are missing, which would not help without one either."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, f"attention_{operation}", None)
    monkeypatch.setattr(sys, "argv", ["kernels.py", operation])
    with pytest.raises(SystemExit, match=r"^bench/kernels\.py: it needs a CUDA GPU"):
        runpy.run_path(str(RESULTS.parent / "kernels.py"), run_name="__main__")


def test_the_floor_of_prefill_is_the_longer_of_computing_and_reading() -> None:
    shape = PrefillShape("2", ((1000, 24), (0, 8)), heads=8, kv_heads=2)
    pairs = 24 * 1000 + 24 * 25 // 2 + 8 * 9 // 2
    assert shape.flops == 4 * 8 * 128 * pairs
    assert shape.bytes == 2 * 1032 * 2 * 128 * 2
    computing, reading = shape.flops / 1e12, shape.bytes / 1e9
    assert reading > computing
    assert shape.floor_seconds(1e12, 1e9) == reading
    assert shape.floor_seconds(1e9, 1e12) == shape.flops / 1e9


def test_the_shapes_are_those_of_the_results() -> None:
    rows = json.loads((RESULTS / "prefill.json").read_text())["results"]
    assert [shape.name for shape in prefill_shapes()] == [row["shape"] for row in rows]
    assert [shape.flops / 1e9 for shape in prefill_shapes()] == [row["gigaflop"] for row in rows]


def test_short_prompts_are_other_shapes_and_none_too_short_for_the_kernel() -> None:
    short = prefill_shapes(short=True)
    assert not {shape.name for shape in short} & {shape.name for shape in prefill_shapes()}
    assert min(length for shape in short for length in shape.lengths) > 128


@pytest.mark.parametrize("short", [False, True])
def test_auto_takes_the_fastest_kernel_in_every_shape_that_was_measured(short: bool) -> None:
    """Of those that a server has on a Hopper GPU, or one about as fast; and it is faster than FlashAttention-3 with
    pages of 1 token, as SGLang runs it, everywhere, and by 8 % on average."""
    gains = []
    rows = json.loads((RESULTS / ("more/prefill-short.json" if short else "prefill.json")).read_text())["results"]
    for shape, row in zip(prefill_shapes(short), rows, strict=True):
        assert row["shape"] == shape.name
        assert row["auto"] == shape.chosen(PROCESSORS)
        best = min(row[f"{side}_us"] for side in ("hopper", "fa3_contiguous", "triton"))
        assert row["auto_us"] <= 1.05 * best, shape.name
        assert row["auto_us"] <= row["fa3_page1_us"], shape.name
        gains.append(row["fa3_page1_us"] / row["auto_us"])
    assert sum(gains) / len(gains) >= 1.08
    assert {shape.chosen(PROCESSORS) for shape in prefill_shapes(short)} == {"hopper", "fa3_contiguous"}


def test_the_table_of_prefill(operations: tuple[ModuleType, ModuleType]) -> None:
    row: dict[str, Any] = {"shape": "1: 0 + 8", "gigaflop": 500.0, "floor_us": 700.0, "fa3_page1_us": 900.0}
    row |= {"sglang_triton_us": 3000.0, "fa3_contiguous_us": 800.0, "triton_us": 1400.0}
    shown = _shown(operations[0].table([row]))
    assert "50%" in shown  # of the floor, by the Triton kernel: nothing else was to be chosen from
    shown = _shown(operations[0].table([row | {"hopper_us": 875.0, "auto": "hopper", "auto_us": 875.0}]))
    assert "Hopper" in shown.splitlines()[-2]
    assert "80%" in shown
    assert "1.029" in shown  # over FlashAttention-3 with pages


def test_the_table_of_decode(operations: tuple[ModuleType, ModuleType]) -> None:
    row = {"shape": "1 x 8", "fa3_page1_us": 60.0, "fa3_page64_us": 50.0, "fa3_contiguous_us": 44.0, "triton_us": 43.0}
    row |= {"hopper_us": 40.0, "ready_us": 41.5, "ratio": 1.25, "ready_ratio": 1.205, "floor_us": 30.0}
    shown = _shown(operations[1].table([row]))
    assert "FA3 contiguous" in shown
    assert all(it in shown for it in ("44.0", "43.0", "41.5", "1.250", "1.205", "75%"))
