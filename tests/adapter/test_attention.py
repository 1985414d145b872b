# SPDX-License-Identifier: Apache-2.0
"""Attention over a contiguous view against a float64 reference, and that it copies and gathers nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("plugged")


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int) -> torch.Tensor:
    q, k, v = q.double(), k.double(), v.double()
    new, heads, _ = q.shape
    length, kv_heads, _ = k.shape
    out = torch.empty(new, heads, v.shape[-1], dtype=torch.float64)
    for i in range(new):
        position = length - new + i
        first = 0 if window < 0 else max(0, position - window)
        for head in range(heads):
            group = head // (heads // kv_heads)
            weights = torch.softmax(scaling * k[first : position + 1, group] @ q[i, head], dim=0)
            out[i, head] = weights @ v[first : position + 1, group]
    return out


def _strided(tokens: int, heads: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """KV as it lies in a virtual tensor: other layers' bytes between the tokens, rubbish past the end."""
    buffer = torch.full((tokens + 8, 3, heads, dim), torch.nan)
    buffer[:tokens, 1] = torch.randn(tokens, heads, dim, generator=generator)
    return buffer[:tokens, 1]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (8, 1)])
@pytest.mark.parametrize(("prefix", "new"), [(0, 1), (0, 37), (63, 1), (50, 13), (1, 64)])
@pytest.mark.parametrize("window", [-1, 0, 20])
def test_against_reference(
    heads: int, kv_heads: int, prefix: int, new: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vt_sglang.adapter import attention

    monkeypatch.setattr(attention, "_MASK_ELEMENTS", 300)  # several blocks of queries
    generator = torch.Generator().manual_seed(prefix * 1000 + new)
    length = prefix + new
    q = torch.randn(new, heads, 16, generator=generator)
    k, v = _strided(length, kv_heads, 16, generator), _strided(length, kv_heads, 24, generator)
    out = torch.full((new, heads, 24), torch.nan)
    attention._attend(q, k, v, out, 0.25, window)
    expected = _reference(q, k, v, 0.25, window)
    assert (out - expected).norm() / expected.norm() < 1e-6


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.storage: set[int] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.storage:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@contextmanager
def _recorded(*known: torch.Tensor) -> Iterator[_Recorder]:
    recorder = _Recorder()
    recorder.storage = {tensor.untyped_storage().data_ptr() for tensor in known}
    with recorder:
        yield recorder


@pytest.mark.parametrize(("prefix", "new"), [(4000, 1), (4000, 16)])
def test_nothing_is_gathered_or_copied(prefix: int, new: int) -> None:
    """No index is read and nothing as large as K is made, grouped heads included."""
    from vt_sglang.adapter.attention import _attend

    generator = torch.Generator().manual_seed(0)
    q = torch.randn(new, 8, 64, generator=generator)
    k = torch.randn(prefix + new, 2, 64, generator=generator)
    v = torch.randn(prefix + new, 2, 64, generator=generator)
    out = torch.empty(new, 8, 64)
    with _recorded(q, k, v, out) as seen:
        _attend(q, k, v, out, 0.125, -1)
    assert not {"index", "index_select", "gather", "take", "repeat_interleave", "clone", "_to_copy"} & set(
        seen.operations
    )
    result_bytes = out.untyped_storage().nbytes()  # SDPA's result, before it is laid out
    mask_bytes = 4 * new * (prefix + new)
    assert seen.largest <= max(result_bytes, mask_bytes) < k.untyped_storage().nbytes()
    assert any("scaled_dot_product" in name for name in seen.operations), seen.operations


def test_layers_it_cannot_do_are_refused() -> None:
    from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

    from vt_sglang.adapter.layers import refuse_layers

    def model(**options: Any) -> torch.nn.Module:
        heads = options.pop("heads", 8)
        xai_temperature_len = options.pop("xai_temperature_len", -1)
        layer = RadixAttention(heads, 16, 0.25, 2, layer_id=0, **options)
        layer.xai_temperature_len = xai_temperature_len  # as Grok sets it
        return torch.nn.Sequential(layer)

    kernels = {"caps_logits": True, "takes_sinks": True}
    refuse_layers(model(sliding_window_size=128), caps_logits=False, takes_sinks=False)
    refuse_layers(model(logit_cap=30.0), least_head_dim=16, most_head_dim=16, **kernels)
    refuse_layers(model(logit_cap=None), caps_logits=False, takes_sinks=False)
    for cap, method in ((-1.0, "tanh"), (30.0, "other")):
        with pytest.raises(ValueError, match=f"logits capped at {cap} by {method}"):
            refuse_layers(model(logit_cap=cap, logit_capping_method=method), **kernels)
    with pytest.raises(ValueError, match="heads of 16 elements, of which 8 are the most"):
        refuse_layers(model(), most_head_dim=8, **kernels)
    with pytest.raises(ValueError, match="heads of 16 elements, of which 32 are the least"):
        refuse_layers(model(), least_head_dim=32, **kernels)
    with_sinks = model()
    with_sinks.sinks = torch.nn.Parameter(torch.zeros(8))
    refuse_layers(with_sinks, **kernels)
    with pytest.raises(ValueError, match="attention sinks"):
        refuse_layers(with_sinks, caps_logits=True, takes_sinks=False)
    for options, says in (
        ({"logit_cap": 30.0}, "logits capped at 30"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "bidirectional"),
        ({"is_cross_attention": True}, "cross-attention"),
        ({"use_irope": True}, "chunked"),
        ({"xai_temperature_len": 1024}, "logits scaled by position beyond 1024 tokens"),
        ({"pos_encoding_mode": "ALIBI"}, "positions encoded in attention by ALIBI"),
        ({"heads": 9}, "9 query heads over 2 KV heads"),
    ):
        with pytest.raises(ValueError, match=says):
            refuse_layers(model(**options), caps_logits=False, takes_sinks=False)
