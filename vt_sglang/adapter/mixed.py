# SPDX-License-Identifier: Apache-2.0
"""Batches in which some requests prefill and others decode (`--enable-mixed-chunk`): SGLang has the latter stand last,
and prefill one token each.

Where those that decode share enough, they are attended to by the decode kernel, which reads what they share once, and
the others alone by the prefill kernel. Else all prefill, in one launch."""

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.decode import TritonDecode
from vt_sglang.adapter.kv_pool import VTensorKVPool

LEAST_SAVED_BYTES = 32 * 2**20
"""That a layer of a mixed batch must save: what a GPU reads in the time (about 10 us) that the launches of decode's
kernels take beside prefill's."""


class MixedBatches:
    """Attention of the batches that are not plain decode.

    Args:
        pool: where K and V are; it knows the batch that is being launched.
        prefill: kernel.
        decode: kernel; of FlashAttention-3's, which shares nothing, no use is made.
    """

    def __init__(self, pool: VTensorKVPool, prefill: Any, decode: Any) -> None:
        self._pool, self._prefill = pool, prefill
        self._decode = decode if isinstance(decode, TritonDecode) and decode.shares else None
        self._tokens: int | None = None  # that prefill, before those that decode
        self._decoding = 0

    def prepare(self, forward_batch: Any) -> None:
        """Once a forward: see whether to part the batch, and have the kernels prepare. What is so saved is told to the
        pool."""
        self._tokens, decoding = None, self._pool.batch_decoding
        slots = self._pool.batch_slots
        first = len(slots) - decoding
        if self._decode is not None and decoding > 1 and first > 0:
            saved = self._decode.share(slots[first:])
            if saved * self._pool.layer_token_bytes >= LEAST_SAVED_BYTES:
                self._tokens, self._decoding = sum(forward_batch.extend_seq_lens_cpu[:first]), decoding
                self._pool.batch_saved_tokens = saved
                self._decode.prepare(_rows(forward_batch, slice(first, len(slots))))
                forward_batch = _rows(forward_batch, slice(first))
        self._prefill.prepare(forward_batch)

    def forward(
        self, query: torch.Tensor, output: torch.Tensor, layer: RadixAttention, sinks: torch.Tensor | None
    ) -> None:
        """Attention of one layer; its K and V are stored already.

        Args:
            query: [tokens, heads, head_dim]: the requests' new tokens one after the other, and maybe padding.
            output: [tokens, heads, v_head_dim], contiguous, written.
            sinks: [heads] or None.
        """
        if self._decode is not None and self._tokens is not None:
            behind = slice(self._tokens, self._tokens + self._decoding)
            self._decode.forward(query[behind], output[behind], layer, sinks)
            query, output = query[: self._tokens], output[: self._tokens]
        self._prefill.forward(query, output, layer, sinks)


def _rows(forward_batch: Any, rows: slice) -> SimpleNamespace:
    """Some of a batch's requests, as the kernels' `prepare` reads a batch."""
    names = ("req_pool_indices", "seq_lens", "extend_seq_lens", "extend_seq_lens_cpu", "extend_prefix_lens_cpu")
    return SimpleNamespace(**{name: getattr(forward_batch, name)[rows] for name in names})
