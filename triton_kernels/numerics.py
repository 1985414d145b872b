# SPDX-License-Identifier: Apache-2.0
"""Numbers and functions that several kernels use."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
"""log2(e): softmax is computed with powers of two, which the hardware has."""


@triton.jit
def tanh(x):
    """tanh by one exponential: 1 - 2 / (e^2x + 1), which is -1 and 1 where that overflows."""
    return 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1)
