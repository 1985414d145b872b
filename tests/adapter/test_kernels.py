# SPDX-License-Identifier: Apache-2.0
"""Which attention kernel a choice comes to, with FlashAttention-3 and without."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vt_sglang.adapter import kernels
from vt_sglang.adapter.fa3 import Fa3UnavailableError
from vt_sglang.config import Kernel

POOL = SimpleNamespace(device="cpu", dtype=torch.bfloat16)
MODEL = torch.nn.Module()


class _Triton:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class _Fa3(_Triton):
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


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("hopper", [False, True])
def test_models_with_one_kv_head_prefill_by_the_projects_kernel(
    monkeypatch: pytest.MonkeyPatch, hopper: bool, kv_heads: int, head_dim: int
) -> None:
    """On Hopper GPUs, as far as the kernel for those goes."""
    from sglang.srt.layers.radix_attention import RadixAttention

    monkeypatch.setattr(kernels, "on_hopper", lambda _: hopper)
    model = torch.nn.ModuleList([RadixAttention(8, head_dim, 1.0, kv_heads, layer_id=layer) for layer in range(2)])
    expected = _Triton if hopper and (kv_heads, head_dim) == (1, 128) else _Fa3
    assert type(kernels.prefill_kernel(Kernel.AUTO, POOL, model)) is expected  # type: ignore[arg-type]
    assert type(kernels.prefill_kernel(Kernel.FA3, POOL, model)) is _Fa3  # type: ignore[arg-type]
