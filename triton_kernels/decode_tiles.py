# SPDX-License-Identifier: Apache-2.0
"""What all loops of the decode kernel take: a tile of tokens from memory, and a step of the online softmax over it
(arXiv 1805.02867; arXiv 2205.14135)."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .numerics import LOG2E, tanh


@triton.jit
def load_tile(
    k_rows, v_rows, k_base, v_base, row, position, kv_head, k_token_stride, v_token_stride,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, TILE: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
):  # fmt: skip
    """K [head_dim, tile] and V [tile, v_head_dim] of tokens [position, position + TILE), all of which are memory."""
    if k_rows is not None:
        at = row + position
        return k_rows.load([at, kv_head * HEAD_DIM]).T, v_rows.load([at, kv_head * V_HEAD_DIM])
    else:
        tokens = position.to(tl.int64) + tl.arange(0, TILE)
        dims = tl.arange(0, BLOCK_DIM)
        v_dims = tl.arange(0, BLOCK_V_DIM)
        keys = tl.load(k_base + tokens[None, :] * k_token_stride + dims[:, None], dims[:, None] < HEAD_DIM, 0.0)
        values = tl.load(v_base + tokens[:, None] * v_token_stride + v_dims[None, :], v_dims[None, :] < V_HEAD_DIM, 0.0)
        return keys, values


@triton.jit
def begin_work():
    """What a step's plan says may be read while the kernel before still runs; queries and tokens only when it is
    done."""
    gdc_wait()
    gdc_launch_dependents()


@triton.jit
def by_head(told, COLUMNS: tl.constexpr):
    """What is told by query head, as a side of a matrix in which a head is a column, or a row."""
    return tl.expand_dims(told, 0 if COLUMNS else 1)


@triton.jit
def by_dim(told, COLUMNS: tl.constexpr):
    """The other side."""
    return tl.expand_dims(told, 1 if COLUMNS else 0)


@triton.jit
def attend(
    query,  # [rows, head_dim]
    keys,  # [head_dim, tile]
    values,  # [tile, v_head_dim]
    visible,  # [tile]: at least one is
    top,  # [rows]: the largest score so far, in powers of two
    denominator,  # [rows]
    sums,  # [rows, v_head_dim]
    scale,
    LOGIT_CAP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of tokens: the running maximum, denominator and sums after it.

    With COLUMNS, a column is a query head: query is [head_dim, columns] and sums [v_head_dim, columns]. A product has 8
    columns at least, where it has 16 rows, so that few heads fill it; its many rows are tokens and dimensions.
    """
    TOKENS: tl.constexpr = 0 if COLUMNS else 1  # the axis
    if COLUMNS:
        scores = tl.dot(keys.to(query.dtype).T, query, input_precision="ieee")
    else:
        scores = tl.dot(query, keys.to(query.dtype), input_precision="ieee")
    if LOGIT_CAP > 0:
        scores = (LOGIT_CAP * LOG2E) * tanh(scores * (scale / LOGIT_CAP))
    else:
        scores *= scale * LOG2E
    # Each tile holds a visible token, so the maximum is finite from the first one on.
    scores = tl.where(tl.expand_dims(visible, 1 - TOKENS), scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, TOKENS))
    weights = tl.exp2(scores - tl.expand_dims(new_top, TOKENS))
    fade = tl.exp2(top - new_top)
    denominator = denominator * fade + tl.sum(weights, TOKENS)
    sums *= tl.expand_dims(fade, TOKENS)
    if COLUMNS:
        sums = tl.dot(values.to(query.dtype).T, weights.to(query.dtype), sums, input_precision="ieee")
    else:
        sums = tl.dot(weights.to(query.dtype), values.to(query.dtype), sums, input_precision="ieee")
    return new_top, denominator, sums
