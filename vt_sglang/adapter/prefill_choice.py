# SPDX-License-Identifier: Apache-2.0
"""Which of two kernels attends in a batch's prefill, where both can be had: `--vtensor-prefill-kernel auto`.

The batch's lengths are known on the host before anything is launched, and attention runs outside SGLang's CUDA graphs
of prefill; so the choice may differ from batch to batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.fa3 import Fa3Prefill
from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.layers import attention_layers
from vt_sglang.adapter.prefill import TritonPrefill, hopper_takes
from vt_sglang.triton_kernels.prefill_hopper_plan import ROWS, TILE

MEASURED_HEAD_DIM = 128
"""Of the heads that both kernels were measured with; layers with others are FlashAttention-3's."""

MOST_STEPS = 100
"""Steps a multiprocessor up to which the project's kernel was measured to be faster: see `hopper_is_faster`."""


def hopper_is_faster(
    new: Sequence[int], prefixes: Sequence[int], *, heads: int, kv_heads: int, processors: int
) -> bool:
    """Whether a layer's attention over such a batch is sooner done by the project's kernel for Hopper GPUs than by
    FlashAttention-3 over the same virtual tensors.

    FlashAttention-3 has the higher rate: by about 1 to 4 %, and more over 100,000 tokens and more. But each of its
    calls deals the batch out anew, by a kernel of its own, and divides long requests among multiprocessors less
    evenly, where the project's batch was dealt out once, on the host; that is some microseconds a layer. So little work
    is the project's, and much is FlashAttention-3's. Work is counted in steps, `ROWS` query rows by `TILE` tokens,
    about 1.6 us of a multiprocessor each: in bench/results/prefill.json and more/prefill-short.json the project's
    kernel is ahead in all shapes of up to 85 steps a multiprocessor, by 1 to 29 %; between 4 % ahead and 4 % behind
    from 124 to 132, and up to 12 % behind beyond.

    A request of no more than `TILE` tokens takes another launch of another kernel each layer, which costs what there
    is to win.

    Args:
        new: each request's new tokens.
        prefixes: each request's tokens before these.
        heads: query heads.
        kv_heads: of the same layer.
        processors: multiprocessors of the GPU.
    """
    news, befores = np.asarray(new, np.int64), np.asarray(prefixes, np.int64)
    if ((news > 0) & (news + befores <= TILE)).any():
        return False
    row_tiles = -(-news * (heads // kv_heads) // ROWS)
    steps = (row_tiles * (befores + news / 2) / TILE).sum()
    return bool(kv_heads * steps <= MOST_STEPS * processors)


class ChosenPrefill:
    """Attention of several new tokens a request by one of two kernels, chosen for each batch and shape of layers.

    Args:
        fa3: FlashAttention-3, for every layer.
        own: the project's kernels.
        pool: where K and V are.
        model: its attention layers.
        processors: multiprocessors of the GPU.
    """

    def __init__(
        self, fa3: Fa3Prefill, own: TritonPrefill, pool: VTensorKVPool, model: torch.nn.Module, *, processors: int
    ) -> None:
        self._fa3, self._own, self._processors = fa3, own, processors
        # (query heads, KV heads) of the layers that both can do and were compared in.
        self._heads = {
            layer.layer_id: (layer.tp_q_head_num, layer.tp_k_head_num)
            for layer in attention_layers(model)
            if is_open(layer, pool.dtype)
        }
        self._others = len(self._heads) < len(list(attention_layers(model)))
        self._by_own: dict[tuple[int, int], bool] = {}

    def prepare(self, forward_batch: Any) -> None:
        """Once a forward: choose, and prepare what was chosen."""
        new, prefixes = forward_batch.extend_seq_lens_cpu, forward_batch.extend_prefix_lens_cpu
        self._by_own = {
            (heads, kv_heads): hopper_is_faster(
                new, prefixes, heads=heads, kv_heads=kv_heads, processors=self._processors
            )
            for heads, kv_heads in set(self._heads.values())
        }
        if any(self._by_own.values()):
            self._own.prepare(forward_batch)
        if self._others or not all(self._by_own.values()):
            self._fa3.prepare(forward_batch)

    def forward(
        self, query: torch.Tensor, output: torch.Tensor, layer: RadixAttention, sinks: torch.Tensor | None
    ) -> None:
        """As the two kernels': [tokens, heads, head_dim] in, the same written."""
        heads = self._heads.get(layer.layer_id)
        chosen = self._own if heads is not None and self._by_own[heads] else self._fa3
        chosen.forward(query, output, layer, sinks)


def is_open(layer: RadixAttention, dtype: torch.dtype) -> bool:
    """Whether it has to be chosen what attends in such a layer, over K and V of such a type, on a Hopper GPU."""
    return hopper_takes(layer, dtype) and layer.qk_head_dim == MEASURED_HEAD_DIM
