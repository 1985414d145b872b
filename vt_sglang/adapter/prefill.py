# SPDX-License-Identifier: Apache-2.0
"""Prefix-prefill attention on a GPU, over the virtual tensors themselves."""

from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.kv_scales import KVScales
from vt_sglang.adapter.layers import attention_layers
from vt_sglang.triton_kernels.checks import on_hopper
from vt_sglang.triton_kernels.prefill import PrefillPlan, prefill_attention
from vt_sglang.triton_kernels.prefill_hopper import prefill_hopper_attention, takes
from vt_sglang.triton_kernels.prefill_hopper_plan import HopperPlan


def _query_starts(forward_batch: Any) -> torch.Tensor:
    """[batch + 1] int32: where each request's new tokens begin, and their end. Computed on the device."""
    lengths = forward_batch.extend_seq_lens
    starts = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=starts[1:])
    return starts


class TritonPrefill:
    """Attention of several new tokens a request, behind a prefix or none: on Hopper GPUs by the kernel made for them,
    as far as that goes, and by the one for all GPUs. Neither reads anything past a request's tokens.

    Args:
        pool: where K and V are.
        model: its attention layers.
    """

    def __init__(self, pool: VTensorKVPool, model: torch.nn.Module) -> None:
        self._pool = pool
        self._scales = KVScales(pool, model)
        self._on_hopper = on_hopper(pool.device)
        self._plans: dict[tuple[Any, ...], PrefillPlan] = {}
        self._hopper_plans: dict[tuple[int, ...], HopperPlan] = {}
        if self._on_hopper:
            for key in {_shape(it) for it in attention_layers(model) if hopper_takes(it, pool.dtype)}:
                _compile(*key, pool)

    def prepare(self, forward_batch: Any) -> None:
        """Once a forward: what the plans are made of, which the first layer of each shape has dealt out."""
        self._slots, self._lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        self._starts = _query_starts(forward_batch)
        self._new, self._prefixes = forward_batch.extend_seq_lens_cpu, forward_batch.extend_prefix_lens_cpu
        self._dealt: set[tuple[Any, ...]] = set()

    def forward(
        self, query: torch.Tensor, output: torch.Tensor, layer: RadixAttention, sinks: torch.Tensor | None
    ) -> None:
        """Attention of one layer; its K and V are stored already.

        Args:
            query: [tokens, heads, head_dim].
            output: [tokens, heads, v_head_dim], contiguous, written.
            sinks: [heads] or None.
        """
        keys, values = self._pool.slots_view(layer.layer_id)
        if self._on_hopper and query.dtype == keys.dtype and hopper_takes(layer, keys.dtype):
            plan = self._hopper_plan(layer)
            prefill_hopper_attention(
                query, keys, values, output, self._slots, self._lengths, plan, scaling=layer.scaling, sinks=sinks
            )
            if plan.short_requests == 0:
                return
            rest = self._plan(layer, plan)
        else:
            rest = self._plan(layer, None)
        scales = self._scales.of(layer)
        prefill_attention(
            query,
            keys,
            values,
            output,
            self._slots,
            self._lengths,
            self._starts,
            rest,
            scaling=layer.scaling,
            logit_cap=layer.logit_cap or 0.0,
            window=layer.sliding_window_size,
            sinks=sinks,
            k_scale=scales.k,
            v_scale=scales.v,
        )

    def _hopper_plan(self, layer: RadixAttention) -> HopperPlan:
        """For layers of this shape, dealt out for this batch."""
        key = _shape(layer)
        if (plan := self._hopper_plans.get(key)) is None:
            group = layer.tp_q_head_num // layer.tp_k_head_num
            plan = self._hopper_plans[key] = HopperPlan(
                group=group, kv_heads=layer.tp_k_head_num, head_dim=layer.qk_head_dim, device=self._pool.device
            )
        if key not in self._dealt:
            plan.update(self._new, self._prefixes)
            self._dealt.add(key)
        return plan

    def _plan(self, layer: RadixAttention, hopper: HopperPlan | None) -> PrefillPlan:
        """Likewise, of all requests, or of those that are too short for the other kernel."""
        group = layer.tp_q_head_num // layer.tp_k_head_num
        key = ("rest" if hopper else "all", group, layer.qk_head_dim, layer.v_head_dim)
        if (plan := self._plans.get(key)) is None:
            plan = self._plans[key] = PrefillPlan(
                group=group,
                head_dim=layer.qk_head_dim,
                v_head_dim=layer.v_head_dim,
                itemsize=self._pool.store_dtype.itemsize,
                device=self._pool.device,
            )
        if key not in self._dealt:
            if hopper is None:
                plan.update(self._starts, sum(self._new))
            else:
                plan.update(
                    self._starts,
                    hopper.short_tokens,
                    among=hopper.short,
                    requests=hopper.short_requests,
                )
            self._dealt.add(key)
        return plan


def _shape(layer: RadixAttention) -> tuple[int, int, int]:
    """Query heads, KV heads and their elements: what the kernel for Hopper is compiled for."""
    return layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim


WARM_PREFIX, WARM_NEW = 2048, 32
"""Tokens of the request that is made up to compile the kernel for Hopper: so many that its work is divided, and merged,
where there are processors enough."""

WARM_PROCESSORS = 4096


def _compile(heads: int, kv_heads: int, head_dim: int, pool: VTensorKVPool) -> None:
    """Attend once over memory of zeros, so that no request waits for the compiler."""
    tokens = WARM_PREFIX + WARM_NEW
    # Whether a slot's tokens divide by 16 is compiled in.
    slot_tokens = tokens if pool.core.slot_tokens % 16 == 0 else tokens + 1
    settings: dict[str, Any] = {"dtype": pool.dtype, "device": pool.device}
    query = torch.zeros(WARM_NEW, heads, head_dim, **settings)
    cache = torch.zeros(1, slot_tokens, kv_heads, head_dim, **settings)
    plan = HopperPlan(
        group=heads // kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        device=pool.device,
        processors=WARM_PROCESSORS,
    )
    plan.update([WARM_NEW], [WARM_PREFIX])
    slots = torch.zeros(1, dtype=torch.int64, device=pool.device)
    lengths = torch.full_like(slots, tokens)
    prefill_hopper_attention(query, cache, cache, torch.empty_like(query), slots, lengths, plan, scaling=1.0)


def hopper_takes(layer: RadixAttention, dtype: torch.dtype) -> bool:
    """Whether the kernel for Hopper GPUs can attend in such a layer, over K and V of such a type."""
    found: bool = takes(
        head_dim=layer.qk_head_dim,
        v_head_dim=layer.v_head_dim,
        dtype=dtype,
        window=layer.sliding_window_size,
        logit_cap=layer.logit_cap or 0.0,
    )
    return found
