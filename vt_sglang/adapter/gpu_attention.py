# SPDX-License-Identifier: Apache-2.0
"""SGLang's attention backend `vtensor` on a GPU.

Nothing is gathered, and no index is read but the location where each new token is stored. Decoding may be captured in
CUDA graphs: what it needs of a batch is computed by kernels, from buffers that the graph reads.
"""

import logging
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter import fa3, kernels
from vt_sglang.adapter.decode import TritonDecode
from vt_sglang.adapter.dummy import is_dummy
from vt_sglang.adapter.kv_pool import as_vtensor_pool
from vt_sglang.adapter.kv_scales import KVScales
from vt_sglang.adapter.layers import refuse_arguments, refuse_layers
from vt_sglang.adapter.mixed import MixedBatches
from vt_sglang.config import VTensorConfig
from vt_sglang.triton_kernels.checks import LEAST_HEAD_DIM, MOST_HEAD_DIM
from vt_sglang.triton_kernels.store import store_kv

logger = logging.getLogger(__name__)


class GpuAttention(AttentionBackend):
    """Prefill and decode over the virtual tensors."""

    needs_cpu_seq_lens = False

    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        self.pool = as_vtensor_pool(model_runner.token_to_kv_pool)
        refuse_layers(
            model_runner.model,
            caps_logits=True,
            takes_sinks=True,
            least_head_dim=LEAST_HEAD_DIM,
            most_head_dim=MOST_HEAD_DIM,
        )
        self._scales = KVScales(self.pool, model_runner.model)
        config = VTensorConfig.from_environment()
        self._prefill = kernels.prefill_kernel(config.prefill_kernel, self.pool, model_runner.model)
        self._decode = kernels.decode_kernel(
            config.decode_kernel, self.pool, model_runner.model, share=config.shared_decode
        )
        self._mixed = MixedBatches(self.pool, self._prefill, self._decode)
        self._dummy = False
        prefill, decode = kernels.name(self._prefill), kernels.name(self._decode)
        share = "on" if isinstance(self._decode, TritonDecode) and self._decode.shares else "off"
        logger.info("Attention over virtual tensors: prefill by %s, decode by %s, sharing %s.", prefill, decode, share)
        # Whatever is chosen for a batch: its pages are mapped before that.
        in_prefill, in_decode = map(kernels.reads_past_the_end, (self._prefill, self._decode))
        if in_prefill:
            self.pool.prefill_guard_tokens = fa3.GUARD_TOKENS
        # Mixed batches may prefill what else would be decoded.
        if in_decode or (in_prefill and model_runner.server_args.enable_mixed_chunk):
            self.pool.decode_guard_tokens = fa3.GUARD_TOKENS
        self._finite = in_prefill or in_decode

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """What only the host can prepare."""
        self._dummy = is_dummy(forward_batch)
        if not forward_batch.forward_mode.is_decode_or_idle() and not self._dummy:
            self._mixed.prepare(forward_batch)
        # What is captured is made up: it shares nothing.
        if forward_batch.forward_mode.is_decode() and isinstance(self._decode, TritonDecode) and not in_capture:
            self.pool.batch_saved_tokens = self._decode.share(self.pool.batch_slots)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """What kernels prepare, captured together with what uses it."""
        if forward_batch.forward_mode.is_decode() and forward_batch.seq_lens.shape[0] > 0:
            self._decode.prepare(forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """All buffers are there, large enough for every slot at once."""

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """0: a padded row's slot is what an earlier batch left there, and nothing of it may be read."""
        return 0

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: Any,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Queries of the new tokens against each request's KV [0, length).

        Args:
            q: [tokens, heads * head_dim], the requests' new tokens one after the other.
            k, v: [tokens, kv_heads * head_dim] of the same tokens, or None where they are stored already.
            sinks: [heads] or None.

        Returns:
            [tokens, heads * v_head_dim].
        """
        refuse_arguments(kwargs)
        self._store(k, v, layer, forward_batch, save_kv_cache)
        query, output = _shaped(q, layer, forward_batch)
        if self._dummy:
            output.zero_()
        elif query.shape[0] > 0:
            self._mixed.forward(query, output, layer, sinks)
        return output.view(-1, layer.tp_q_head_num * layer.v_head_dim)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: Any,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `forward_extend`, with one new token a request."""
        refuse_arguments(kwargs)
        self._store(k, v, layer, forward_batch, save_kv_cache)
        query, output = _shaped(q, layer, forward_batch)
        if query.shape[0] > 0:
            self._decode.forward(query, output, layer, sinks)
        return output.view(-1, layer.tp_q_head_num * layer.v_head_dim)

    def support_triton(self) -> bool:
        """SGLang may use its Triton kernels beside this backend."""
        return True

    def _store(self, k: torch.Tensor, v: torch.Tensor, layer: RadixAttention, forward_batch: Any, save: bool) -> None:
        if not save or k is None or v is None:
            return
        keys, values = self.pool.get_kv_buffer(layer.layer_id)
        k = k.reshape(-1, layer.tp_k_head_num, layer.qk_head_dim)
        v = v.reshape(-1, layer.tp_v_head_num, layer.v_head_dim)
        scales = self._scales.of(layer)
        store_kv(
            k,
            v,
            keys,
            values,
            forward_batch.out_cache_loc,
            k_scale=scales.k,
            v_scale=scales.v,
            finite=self._finite,
        )


def _shaped(q: torch.Tensor, layer: RadixAttention, forward_batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The queries [tokens, heads, head_dim], and where their result goes: where a graph of SGLang's reads it, or new
    memory."""
    query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
    shape = (query.shape[0], layer.tp_q_head_num, layer.v_head_dim)
    given = getattr(forward_batch, "_attn_output", None)
    if given is not None and given.numel() == shape[0] * shape[1] * shape[2] and given.is_contiguous():
        return query, given.view(shape)
    return query, q.new_empty(shape)
