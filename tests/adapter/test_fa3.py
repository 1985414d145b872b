# SPDX-License-Identifier: Apache-2.0
"""What FlashAttention-3 is asked before it is chosen."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter import fa3

POOL = SimpleNamespace(device="cpu", dtype=torch.bfloat16)


class _Attention(torch.nn.Module):
    """As models have it: sinks lie beside the layer that they are for."""

    def __init__(self, layer_id: int, name: str = "", sinks: torch.Tensor | None = None) -> None:
        super().__init__()
        self.attn = RadixAttention(8, 64, 1.0, 2, layer_id=layer_id)
        if name:
            setattr(self, name, None if sinks is None else torch.nn.Parameter(sinks, requires_grad=False))


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor | None]:
    """The sinks of each call."""
    given: list[torch.Tensor | None] = []

    def attend(query: torch.Tensor, *_: Any, sinks: torch.Tensor | None = None, **__: Any) -> torch.Tensor:
        given.append(sinks)
        if sinks is not None and sinks.dtype != torch.bfloat16:
            raise RuntimeError("sinks must be bfloat16")
        return query

    monkeypatch.setattr(fa3, "_load", lambda _device: attend)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return given


@pytest.mark.parametrize("name", ["sinks", "attention_sink_bias"])
def test_layers_with_sinks_are_probed_with_them(probes: list[torch.Tensor | None], name: str) -> None:
    sinks = torch.ones(8, dtype=torch.bfloat16)
    model = torch.nn.ModuleList(
        [_Attention(0), _Attention(1, name), _Attention(2, name, sinks), _Attention(3, name, sinks)]
    )
    fa3.Fa3Decode(POOL, model)  # type: ignore[arg-type]
    assert len(probes) == 2
    assert probes[0] is None
    assert probes[1] is not None
    assert torch.equal(probes[1], sinks)


@pytest.mark.usefixtures("probes")
def test_sinks_that_it_does_not_take() -> None:
    model = torch.nn.ModuleList([_Attention(0, "sinks", torch.zeros(8))])
    with pytest.raises(fa3.Fa3UnavailableError, match=r"with sinks in torch\.float32: RuntimeError: sinks must be"):
        fa3.Fa3Prefill(POOL, model)  # type: ignore[arg-type]
