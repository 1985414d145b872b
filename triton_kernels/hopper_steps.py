# SPDX-License-Identifier: Apache-2.0
"""What the consumers of Hopper's attention kernels do with a tile of tokens (arXiv 2407.08608)."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma


@gluon.jit
def scores(
    q, k_smem, k_full, step, S_LAYOUT: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """Start the scores of a tile of tokens."""
    at = step % STAGES
    mbarrier.wait(k_full.index(at), (step // STAGES) & 1)
    zero = gl.zeros([ROWS, TILE], gl.float32, S_LAYOUT)
    return warpgroup_mma(q, k_smem.index(at).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def own_sums(weights, LAZY: gl.constexpr):
    """Each thread's sum of its part of a row ([rows, 4]: a row is four threads'), or the rows' sums."""
    if LAZY:
        parts = weights.reshape([weights.shape[0], weights.shape[1] // 8, 4, 2])
        return gl.sum(gl.sum(parts, 3), 1)
    else:
        return gl.sum(weights, 1)


@gluon.jit
def packed(weights, dtype: gl.constexpr):
    """Weights in half precision, two neighbours a word: what goes round a loop stays in whole registers."""
    even, odd = weights.reshape([weights.shape[0], weights.shape[1] // 2, 2]).split()
    if dtype == gl.bfloat16:
        convert: gl.constexpr = "cvt.rn.bf16x2.f32 $0, $2, $1;"
    else:
        convert: gl.constexpr = "cvt.rn.f16x2.f32 $0, $2, $1;"
    return gl.inline_asm_elementwise(convert, "=r,f,f", [even, odd], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def operand(packed, P_LAYOUT: gl.constexpr, dtype: gl.constexpr):
    """What `packed` packed as a left operand."""
    even, odd = gl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [packed], dtype=(gl.int16, gl.int16), is_pure=True, pack=1
    )
    weights = gl.join(even, odd).reshape([packed.shape[0], packed.shape[1] * 2])
    return gl.convert_layout(weights.to(dtype, bitcast=True), P_LAYOUT)


@gluon.jit
def softmax(
    scores, top, denominator, scale, LAZY: gl.constexpr, dtype: gl.constexpr
):  # fmt: skip
    """The weights of a tile, packed, and the running maximum and denominator after it."""
    new_top = gl.maximum(top, gl.max(scores, 1))
    base = new_top * scale
    weights = gl.exp2(
        gl.fma(scores, gl.full_like(scores, 0.0) + scale, gl.full_like(scores, 0.0) - base.expand_dims(1))
    )
    fade = gl.exp2(top * scale - base)
    sums = own_sums(weights, LAZY)
    if LAZY:
        denominator = denominator * gl.convert_layout(fade, gl.SliceLayout(1, denominator.type.layout)).expand_dims(1)
        denominator += sums
    else:
        denominator = denominator * fade + sums
    return packed(weights, dtype), fade, new_top, denominator
