# SPDX-License-Identifier: Apache-2.0
"""Which attention kernel a choice comes to, with FlashAttention-3 and without."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from vt_sglang.triton_kernels import decode_hopper
from vt_sglang.triton_kernels.decode_plan import DecodePlan, most_group

from vt_sglang.adapter import kernels
from vt_sglang.adapter.decode import TritonDecode
from vt_sglang.adapter.fa3 import Fa3UnavailableError
from vt_sglang.adapter.prefill_choice import ChosenPrefill
from vt_sglang.config import Kernel

POOL = SimpleNamespace(device="cpu", dtype=torch.bfloat16)
MODEL = torch.nn.Module()


class _Triton:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class _Fa3:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class _Missing:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise Fa3UnavailableError("it was left out")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for phase in ("Prefill", "Decode"):
        monkeypatch.setattr(kernels, f"Triton{phase}", _Triton)
        monkeypatch.setattr(kernels, f"Fa3{phase}", _Fa3)


@pytest.mark.parametrize(("wanted", "prefill", "decode"), [("auto", _Fa3, _Triton), ("fa3", _Fa3, _Fa3)])
def test_where_both_can_be_had(wanted: str, prefill: type, decode: type) -> None:
    assert type(kernels.prefill_kernel(Kernel(wanted), POOL, MODEL)) is prefill  # type: ignore[arg-type]
    assert type(kernels.decode_kernel(Kernel(wanted), POOL, MODEL, share=True)) is decode  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", ["auto", "triton"])
def test_without_flash_attention(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    for phase in ("Prefill", "Decode"):
        monkeypatch.setattr(kernels, f"Fa3{phase}", _Missing)
    assert type(kernels.prefill_kernel(Kernel(wanted), POOL, MODEL)) is _Triton  # type: ignore[arg-type]
    assert type(kernels.decode_kernel(Kernel(wanted), POOL, MODEL, share=True)) is _Triton  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_asked_for_by_name_it_must_be_there(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    monkeypatch.setattr(kernels, f"Fa3{phase.title()}", _Missing)
    with pytest.raises(ValueError, match=f"--vtensor-{phase}-kernel fa3: it was left out; leave it at auto"):
        getattr(kernels, f"{phase}_kernel")(Kernel.FA3, POOL, MODEL, **({"share": True} if phase == "decode" else {}))


@pytest.mark.parametrize(("head_dim", "window"), [(128, -1), (64, -1), (256, -1), (128, 100)])
@pytest.mark.parametrize("hopper", [False, True])
def test_on_hopper_each_batch_is_chosen_for(
    monkeypatch: pytest.MonkeyPatch, hopper: bool, head_dim: int, window: int
) -> None:
    """As far as both kernels go, and were compared. FlashAttention-3 may be what is chosen, and reads past the end."""
    monkeypatch.setattr(kernels, "on_hopper", lambda _: hopper)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    model = torch.nn.ModuleList(
        [RadixAttention(8, head_dim, 1.0, 2, layer_id=layer, sliding_window_size=window) for layer in range(2)]
    )
    expected = ChosenPrefill if hopper and (head_dim, window) == (128, -1) else _Fa3
    found = kernels.prefill_kernel(Kernel.AUTO, POOL, model)  # type: ignore[arg-type]
    assert type(found) is expected
    assert kernels.reads_past_the_end(found)
    assert type(kernels.prefill_kernel(Kernel.FA3, POOL, model)) is _Fa3  # type: ignore[arg-type]
    assert type(kernels.prefill_kernel(Kernel.TRITON, POOL, model)) is _Triton  # type: ignore[arg-type]
    assert not kernels.reads_past_the_end(kernels.prefill_kernel(Kernel.TRITON, POOL, model))  # type: ignore[arg-type]


@pytest.mark.parametrize("hopper", [False, True])
def test_without_flash_attention_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch, hopper: bool) -> None:
    monkeypatch.setattr(kernels, "on_hopper", lambda _: hopper)
    monkeypatch.setattr(kernels, "Fa3Prefill", _Missing)
    model = torch.nn.ModuleList([RadixAttention(8, 128, 1.0, 2, layer_id=0)])
    assert type(kernels.prefill_kernel(Kernel.AUTO, POOL, model)) is _Triton  # type: ignore[arg-type]


@pytest.mark.parametrize(("device", "capability", "most"), [("cuda", 9, 32), ("cuda", 8, None), ("cpu", 9, None)])
def test_so_many_heads_of_a_kv_head_decode_takes(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: int, most: int | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    assert most_group(device) == most


@pytest.mark.parametrize(("heads", "cap", "most"), [(48, 0.0, 64), (65, 0.0, 32), (33, 50.0, 32)])
def test_a_model_with_more_is_told_of_flash_attention(
    monkeypatch: pytest.MonkeyPatch, heads: int, cap: float, most: int
) -> None:
    """Before anything is made for it. The kernel for Hopper takes more, where it can read the layer."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(decode_hopper, "can_read", lambda _k, _v, group: group <= 64)
    monkeypatch.setattr(DecodePlan, "__init__", _refuse_all)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    core = SimpleNamespace(slots=3)
    pool = SimpleNamespace(device="cuda", dtype=torch.bfloat16, store_dtype=torch.bfloat16, core=core)
    pool.slots_view = lambda _: (None, None)
    model = torch.nn.ModuleList([RadixAttention(it, 128, 1.0, 1, layer_id=0, logit_cap=cap) for it in (heads, 8)])
    told = r"--vtensor-decode-kernel fa3" if heads > most else "a plan of 48 heads"
    with pytest.raises(ValueError, match=told):
        TritonDecode(pool, model, share=False)  # type: ignore[arg-type]


def _refuse_all(_self: DecodePlan, *, group: int, config: object, **_: object) -> None:
    assert config is decode_hopper.CONFIG
    raise ValueError(f"a plan of {group} heads")
