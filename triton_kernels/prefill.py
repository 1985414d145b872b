# SPDX-License-Identifier: Apache-2.0
"""Prefix-prefill attention over contiguous KV: each request's new tokens against its prefix and themselves, causal, in
one pass.

    out_i = sum_j p_ij v_j / sum_j p_ij,   p_ij = exp(s_ij - max_j s_ij),   s_ij = cap(scaling * q_i . k_j),   j <= i

with cap and sinks as in decode.py, and j >= i - window where there is a window. Online softmax over tiles of tokens
(arXiv 2205.14135). The query heads of a KV head are rows of the same tile, token by token, so that a short prefill
still fills its tiles and reads K and V once for all of them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .checks import (
    FLOATS,
    TMA_BYTES,
    WORDS,
    Heads,
    at_least,
    check_attention,
    check_cap,
    check_scales,
    check_scaling,
    check_vector,
    unaligned,
)
from .numerics import LOG2E, tanh
from .tiles import shared_bytes

LEAST_BLOCK_BATCH = 256
"""Requests of a batch that the plan's kernel looks at, at least: more than most batches of prompts have, so that few
wait for the compiler."""


@triton.jit(do_not_specialize=["batch"])
def prefill_plan_kernel(
    query_starts,  # [batch + 1] int32: where each request's new tokens begin among the batch's, and the end
    tile_requests,  # [tiles] int32, written: whose rows a tile has; -1: nobody's
    tile_indices,  # [tiles] int32, written: which of his tiles it is
    among,  # [batch] int32: not 0 for requests that are dealt out; or None: all are
    batch,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    """One program a tile. A request's last tiles come first: they see the most tokens."""
    tile = tl.program_id(0)
    requests = tl.arange(0, BLOCK_BATCH)
    mask = requests < batch
    starts = tl.load(query_starts + requests, mask=mask, other=0)
    stops = tl.load(query_starts + requests + 1, mask=mask, other=0)
    tiles = tl.cdiv((stops - starts) * GROUP, BLOCK_ROWS)
    if among is not None:
        tiles = tl.where(tl.load(among + requests, mask=mask, other=0) != 0, tiles, 0)
    ends = tl.cumsum(tiles, 0)
    request = tl.sum(((ends <= tile) & mask).to(tl.int32), 0)
    end = tl.sum(tl.where(requests == request, ends, 0), 0)
    tl.store(tile_requests + tile, tl.where(request < batch, request, -1))
    tl.store(tile_indices + tile, end - 1 - tile)


@triton.jit
def _step(
    query,
    keys_at,
    values_at,
    position,
    positions,
    top,
    denominator,
    sums,
    scale,
    LOGIT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One tile of tokens: the running maximum, denominator and sum after it."""
    keys = keys_at.load([position, 0])
    scores = tl.dot(query, keys.to(query.dtype).T, input_precision="ieee")
    if LOGIT_CAP > 0:
        scores = (LOGIT_CAP * LOG2E) * tanh(scores * (scale / LOGIT_CAP))
    else:
        scores *= scale * LOG2E
    if MASKED:
        columns = position + tl.arange(0, TILE)
        visible = columns[None, :] <= positions[:, None]
        if WINDOW >= 0:
            visible &= columns[None, :] >= positions[:, None] - WINDOW
        scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = new_top
    if MASKED:
        # A row that has seen nothing yet, before its window begins.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    denominator = denominator * fade + tl.sum(weights, 1)
    values = values_at.load([position, 0])
    sums = tl.dot(weights.to(query.dtype), values.to(query.dtype), sums * fade[:, None], input_precision="ieee")
    return new_top, denominator, sums


@triton.jit
def prefill_kernel(
    q,  # [tokens, heads, head_dim]
    k,  # [slots, slot_tokens, kv_heads, head_dim]
    v,  # [slots, slot_tokens, kv_heads, v_head_dim]
    out,  # [tokens, heads, v_head_dim], written
    slots,  # [batch]
    lengths,  # [batch]: tokens, the new ones included
    query_starts,  # [batch + 1]
    tile_requests,  # [tiles]
    tile_indices,  # [tiles]
    sinks,  # [heads] or None
    k_scale,  # [1] float32 or None
    v_scale,  # [1] float32 or None
    q_token_stride,
    q_head_stride,
    k_slot_stride,
    k_token_stride,
    k_head_stride,
    v_slot_stride,
    v_token_stride,
    v_head_stride,
    out_token_stride,
    out_head_stride,
    scaling,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    LOGIT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
):
    """One program a tile of rows and KV head."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    request = tl.load(tile_requests + tile)
    if request < 0:
        return
    start = tl.load(query_starts + request)
    new = tl.load(query_starts + request + 1) - start
    length = tl.load(lengths + request).to(tl.int32)
    slot = tl.load(slots + request).to(tl.int64)
    first_row = tl.load(tile_indices + tile) * BLOCK_ROWS

    rows = first_row + tl.arange(0, BLOCK_ROWS)
    tokens = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    row_mask = tokens < new
    dims = tl.arange(0, BLOCK_DIM)
    v_dims = tl.arange(0, BLOCK_V_DIM)
    query = tl.load(
        q + (start + tokens).to(tl.int64)[:, None] * q_token_stride + heads[:, None] * q_head_stride + dims[None, :],
        mask=row_mask[:, None] & (dims[None, :] < HEAD_DIM),
        other=0.0,
    )
    # The bounds of what these describe are the request's tokens: nothing past them is read.
    keys_at = tl.make_tensor_descriptor(
        k + slot * k_slot_stride + kv_head * k_head_stride,
        shape=[length, HEAD_DIM],
        strides=[k_token_stride, 1],
        block_shape=[TILE, BLOCK_DIM],
    )
    values_at = tl.make_tensor_descriptor(
        v + slot * v_slot_stride + kv_head * v_head_stride,
        shape=[length, V_HEAD_DIM],
        strides=[v_token_stride, 1],
        block_shape=[TILE, BLOCK_V_DIM],
    )
    scale = scaling
    if k_scale is not None:
        scale *= tl.load(k_scale)

    positions = length - new + tl.minimum(tokens, new - 1)
    first_position = length - new + first_row // GROUP
    end = length - new + tl.minimum((first_row + BLOCK_ROWS - 1) // GROUP, new - 1) + 1
    top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    denominator = tl.zeros([BLOCK_ROWS], tl.float32)
    sums = tl.zeros([BLOCK_ROWS, BLOCK_V_DIM], tl.float32)
    masked_from = 0
    if WINDOW < 0:
        # What the tile's first token sees, all its rows see.
        masked_from = (first_position + 1) // TILE * TILE
        for position in range(0, masked_from, TILE):
            top, denominator, sums = _step(
                query, keys_at, values_at, position, positions, top, denominator, sums, scale,
                LOGIT_CAP, WINDOW, False, TILE,
            )  # fmt: skip
    else:
        masked_from = tl.maximum(first_position - WINDOW, 0) // TILE * TILE
    for position in range(masked_from, end, TILE):
        top, denominator, sums = _step(
            query, keys_at, values_at, position, positions, top, denominator, sums, scale,
            LOGIT_CAP, WINDOW, True, TILE,
        )  # fmt: skip

    if sinks is not None:
        sink = tl.load(sinks + heads, mask=row_mask, other=0.0).to(tl.float32)
        denominator += tl.exp2(sink * LOG2E - top)
    factor = 1 / denominator
    if v_scale is not None:
        factor *= tl.load(v_scale)
    tl.store(
        out + (start + tokens).to(tl.int64)[:, None] * out_token_stride + heads[:, None] * out_head_stride
        + v_dims[None, :],
        (sums * factor[:, None]).to(out.dtype.element_ty),
        mask=row_mask[:, None] & (v_dims[None, :] < V_HEAD_DIM),
    )  # fmt: skip


@dataclass(frozen=True)
class PrefillConfig:
    """How the prefill kernel is compiled."""

    rows: int
    """Query rows of a program."""
    tile: int
    """Tokens a step."""
    warps: int
    stages: int
    """Tiles on their way from memory."""

    @staticmethod
    def of(token_bytes: int, shared: int) -> "PrefillConfig":
        """What was measured to be fastest over most shapes (docs/performance.md): two programs a multiprocessor.

        Args:
            token_bytes: of K and V of one token and KV head, each padded to a power of two.
            shared: bytes of shared memory for tiles.
        """
        # The queries' tile takes as much as half of a tile of K and V.
        if (3 * 64 + 32) * token_bytes <= shared and token_bytes <= 512:
            return PrefillConfig(64, 64, 4, 3)
        return PrefillConfig(64, 32, 4, 2)


class PrefillPlan:
    """Which rows each program of a batch's prefill attention takes, for all layers with the same group of query heads.

    Args:
        group: query heads of a KV head.
        head_dim, v_head_dim: elements of a head of K, and of V and the output.
        itemsize: bytes of an element of K and V.
        device: where the batch is.
        config: in place of the measured choice.

    Raises:
        ValueError: no kernel can take such heads.
    """

    def __init__(
        self,
        *,
        group: int,
        head_dim: int,
        v_head_dim: int,
        itemsize: int,
        device: torch.device | str,
        config: PrefillConfig | None = None,
    ) -> None:
        self.heads = Heads.of(
            kv_heads=None, group=group, head_dim=head_dim, v_head_dim=v_head_dim, itemsize=itemsize, device=device
        )
        self.batch = self.tokens = 0
        """Requests of the batch that was dealt out last, and their new tokens or more."""
        token_bytes = (triton.next_power_of_2(head_dim) + triton.next_power_of_2(v_head_dim)) * itemsize
        self.config = config or PrefillConfig.of(token_bytes, shared_bytes(device))
        self._group = group
        self._device = device
        self.tiles = 0
        self.tile_requests = torch.empty(0, dtype=torch.int32, device=device)
        self.tile_indices = torch.empty(0, dtype=torch.int32, device=device)

    def update(
        self,
        query_starts: torch.Tensor,
        tokens: int,
        *,
        among: torch.Tensor | None = None,
        requests: int | None = None,
    ) -> None:
        """Deal out a batch, or some of its requests.

        Args:
            query_starts: [batch + 1] int32 on the device: where each request's new tokens begin, and their end.
            tokens: new ones of all requests that are dealt out, or more, but no more than there are queries.
            among: [batch] int32: not 0 for those that are dealt out. None: all are.
            requests: how many these are, or more. None: all.

        Raises:
            ValueError: an argument has another shape, dtype, layout or device, or there is no request.
            TypeError: one is no tensor.
        """
        check_vector("query_starts", query_starts, 2, WORDS, self.heads.device, more=True)
        batch = query_starts.shape[0] - 1
        if among is not None:
            check_vector("among", among, batch, WORDS, self.heads.device)
        at_least("tokens", tokens, 0)
        self.batch, self.tokens = batch, tokens
        rows = self.config.rows
        # The most tiles that so many tokens can make; those which this batch does not need return at once.
        self.tiles = tokens * self._group // rows + (batch if requests is None else requests)
        if self.tiles > self.tile_requests.shape[0]:
            self.tile_requests = torch.empty(2 * self.tiles, dtype=torch.int32, device=self._device)
            self.tile_indices = torch.empty_like(self.tile_requests)
        prefill_plan_kernel[(self.tiles,)](
            query_starts,
            self.tile_requests,
            self.tile_indices,
            among,
            batch,
            GROUP=self._group,
            BLOCK_ROWS=rows,
            BLOCK_BATCH=max(LEAST_BLOCK_BATCH, triton.next_power_of_2(batch)),
        )


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    query_starts: torch.Tensor,
    plan: PrefillPlan,
    *,
    scaling: float,
    logit_cap: float = 0.0,
    window: int = -1,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Causal attention of each request's new tokens, its last, over its tokens [0, length).

    No value on the device is read by the host.

    Args:
        q: [tokens, heads, head_dim] bfloat16, float16 or float32, the requests' new tokens one after the other; any
            strides but 1 in the last dimension.
        k: [slots, slot_tokens, kv_heads, head_dim], any strides of whole 16 bytes but 1 in the last dimension; of q's
            dtype or float8 e4m3.
        v: [slots, slot_tokens, kv_heads, v_head_dim], likewise, of k's dtype.
        out: [tokens, heads, v_head_dim] of q's dtype, any strides but 1 in the last dimension, written.
        slots: [batch] int32 or int64.
        lengths: [batch] int32 or int64, each request's tokens, prefix and new.
        query_starts: [batch + 1] int32: where each request's new tokens begin in q, and their end.
        plan: made from the same query_starts.
        scaling: factor of q . k, a positive number.
        logit_cap: bound of the scores, by tanh, a positive number; 0: none.
        window: tokens that a query sees before its own; negative: all.
        sinks: [heads]: a score a head that takes part in the softmax without a value.
        k_scale, v_scale: [1] float32: what stored keys and values are to be multiplied by.

    Raises:
        ValueError: an argument has another shape, dtype, layout or device than this or the plan's; or the cap is
            negative or not finite.
        TypeError: one is no tensor.
    """
    _, group, head_dim, v_head_dim, itemsize, device = plan.heads
    strides = check_attention(q, k, v, out, slots, lengths, plan.heads, plan.batch, plan.tokens)
    q_stride, k_stride, v_stride, out_stride = strides
    kv_heads = k.shape[2]
    steps = k_stride[0] | k_stride[1] | k_stride[2] | v_stride[0] | v_stride[1] | v_stride[2]
    if (steps * itemsize | k.data_ptr() | v.data_ptr()) % TMA_BYTES:
        raise unaligned(k=k, v=v)
    check_vector("query_starts", query_starts, plan.batch + 1, WORDS, device)
    if sinks is not None:
        check_vector("sinks", sinks, kv_heads * group, FLOATS, device)
    check_scales(k_scale, v_scale, device)
    check_scaling(scaling)
    check_cap(logit_cap)
    config = plan.config
    if q.is_cuda:
        triton.set_allocator(_scratch)
    prefill_kernel[(plan.tiles, kv_heads)](
        q,
        k,
        v,
        out,
        slots,
        lengths,
        query_starts,
        plan.tile_requests,
        plan.tile_indices,
        sinks,
        k_scale,
        v_scale,
        *q_stride[:2],
        *k_stride[:3],
        *v_stride[:3],
        *out_stride[:2],
        scaling,
        GROUP=group,
        HEAD_DIM=head_dim,
        V_HEAD_DIM=v_head_dim,
        LOGIT_CAP=logit_cap,
        WINDOW=window,
        TILE=config.tile,
        BLOCK_ROWS=config.rows,
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        BLOCK_V_DIM=triton.next_power_of_2(v_head_dim),
        num_warps=config.warps,
        num_stages=config.stages,
    )


def _scratch(size: int, _alignment: int, _stream: int | None) -> torch.Tensor:
    """Memory for the descriptors that the kernel makes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
