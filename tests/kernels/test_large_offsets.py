# SPDX-License-Identifier: Apache-2.0
"""K and V more than 2^32 elements into an arena are found: offsets are of 64 bits."""

import os

import pytest
import torch
from arena import CUDA, assert_close
from reference import attend
from vt_sglang.triton_kernels import decode
from vt_sglang.triton_kernels.decode_plan import DecodeConfig, DecodePlan
from vt_sglang.triton_kernels.prefill import PrefillConfig, PrefillPlan, prefill_attention
from vt_sglang.triton_kernels.rows import in_rows
from vt_sglang.triton_kernels.store import store_kv

KV_HEADS, GROUP, DIM, TOKENS = 2, 2, 64, 310
SLOTS, SLOT_TOKENS, SLOT = 2, 320, 1
TOKEN_STRIDE = 2**23 + 64
"""So that both a slot and a token's place in it lie beyond 2^31 elements."""
LENGTHS = [TOKENS, TOKENS - 3]


def _lazy(elements: int) -> torch.Tensor:
    """Address space of which a page becomes memory when it is touched: a sparse file that is mapped."""
    file = os.memfd_create("arena")
    try:
        os.ftruncate(file, 2 * elements)
        return torch.from_file(f"/proc/self/fd/{file}", shared=True, size=elements, dtype=torch.float16)
    finally:
        os.close(file)


def test_rows_that_32_bits_cannot_count_are_read_by_pointers() -> None:
    """A descriptor's coordinates are of 32 bits."""
    for slots, fit in ((2047, True), (2048, False), (4096, False)):
        assert in_rows(torch.empty(slots, 2**20, 1, 64, dtype=torch.float16, device="meta")) is fit


@pytest.mark.skipif(CUDA, reason="address space without memory is had by the interpreter")
def test_offsets_are_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    slot_stride, width = SLOT_TOKENS * TOKEN_STRIDE, KV_HEADS * DIM
    assert min(slot_stride, (TOKENS - 45) * TOKEN_STRIDE) > 2**31
    assert slot_stride + TOKENS * TOKEN_STRIDE > 2**32
    arena = _lazy(SLOTS * slot_stride)
    shape, strides = (SLOTS * SLOT_TOKENS, KV_HEADS, DIM), (TOKEN_STRIDE, DIM, 1)
    keys, values = (torch.as_strided(arena, shape, strides, offset) for offset in (0, width))
    k_cache, v_cache = (it.unflatten(0, (SLOTS, SLOT_TOKENS)) for it in (keys, values))
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, TOKENS, KV_HEADS, DIM, generator=generator).half()
    store_kv(k, v, keys, values, torch.arange(TOKENS) + SLOT * SLOT_TOKENS)
    assert torch.equal(k_cache[SLOT, :TOKENS], k)
    assert torch.equal(v_cache[SLOT, :TOKENS], v)

    slots, lengths, scaling = torch.tensor([SLOT, SLOT]), torch.tensor(LENGTHS), DIM**-0.5
    q = torch.randn(45, KV_HEADS * GROUP, DIM, generator=generator).half()
    of_a_head = {"head_dim": DIM, "v_head_dim": DIM, "itemsize": 2, "device": "cpu"}
    plan = DecodePlan(
        max_batch=2,
        kv_heads=KV_HEADS,
        group=GROUP,
        multiprocessors=6,
        config=DecodeConfig(32, 4, 2, 1),
        **of_a_head,
    )
    plan.update(slots, lengths)
    for by_descriptors in (True, False):
        with monkeypatch.context() as patch:
            if not by_descriptors:
                patch.setattr(decode, "in_rows", lambda _: False)
            out = torch.full_like(q[:2], float("nan"))
            decode.decode_attention(q[:2], k_cache, v_cache, out, slots, lengths, plan, scaling=scaling)
        for row, length in enumerate(LENGTHS):
            expected = attend(q[row : row + 1], k[:length].float(), v[:length].float(), scaling=scaling)
            assert_close(out[row : row + 1], expected, torch.float16, f"decode {length}, descriptors: {by_descriptors}")

    starts = torch.tensor([0, 40, 45], dtype=torch.int32)
    prefill_plan = PrefillPlan(group=GROUP, config=PrefillConfig(32, 32, 4, 2), **of_a_head)
    prefill_plan.update(starts, 45)
    out = torch.full_like(q, float("nan"))
    prefill_attention(q, k_cache, v_cache, out, slots, lengths, starts, prefill_plan, scaling=scaling)
    for (first, stop), length in zip(((0, 40), (40, 45)), LENGTHS, strict=True):
        expected = attend(q[first:stop], k[:length].float(), v[:length].float(), scaling=scaling)
        assert_close(out[first:stop], expected, torch.float16, f"prefill {length}")
