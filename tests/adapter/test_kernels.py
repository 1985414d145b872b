# SPDX-License-Identifier: Apache-2.0
"""Which attention kernel a choice comes to, with FlashAttention-3 and without."""

from typing import Any

import pytest

from vt_sglang.adapter import kernels
from vt_sglang.adapter.fa3 import Fa3UnavailableError
from vt_sglang.config import Kernel


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
    assert type(kernels.prefill_kernel(Kernel(wanted), None, None)) is prefill  # type: ignore[arg-type]
    assert type(kernels.decode_kernel(Kernel(wanted), None, None, share=True)) is decode  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", ["auto", "triton"])
def test_without_flash_attention(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    for phase in ("Prefill", "Decode"):
        monkeypatch.setattr(kernels, f"Fa3{phase}", _Missing)
    assert type(kernels.prefill_kernel(Kernel(wanted), None, None)) is _Triton  # type: ignore[arg-type]
    assert type(kernels.decode_kernel(Kernel(wanted), None, None, share=True)) is _Triton  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_asked_for_by_name_it_must_be_there(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    monkeypatch.setattr(kernels, f"Fa3{phase.title()}", _Missing)
    with pytest.raises(ValueError, match=f"--vtensor-{phase}-kernel fa3: it was left out; leave it at auto"):
        getattr(kernels, f"{phase}_kernel")(Kernel.FA3, None, None, **({"share": True} if phase == "decode" else {}))
