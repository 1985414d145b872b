# SPDX-License-Identifier: Apache-2.0
"""Online softmax over tiles of tokens (arXiv 1805.02867; arXiv 2205.14135): the step that all loops of decode take."""

import triton
import triton.language as tl

from .numerics import LOG2E, tanh


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
):
    """One tile of tokens: the running maximum, denominator and sums after it."""
    scores = tl.dot(query, keys.to(query.dtype), input_precision="ieee")
    if LOGIT_CAP > 0:
        scores = (LOGIT_CAP * LOG2E) * tanh(scores * (scale / LOGIT_CAP))
    else:
        scores *= scale * LOG2E
    # Each tile holds a visible token, so the maximum is finite from the first one on.
    scores = tl.where(visible[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    fade = tl.exp2(top - new_top)
    denominator = denominator * fade + tl.sum(weights, 1)
    sums = tl.dot(weights.to(query.dtype), values.to(query.dtype), sums * fade[:, None], input_precision="ieee")
    return new_top, denominator, sums
