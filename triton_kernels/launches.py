# SPDX-License-Identifier: Apache-2.0
"""Programmatic dependent launch: a kernel is set up while the one before it still runs.

A kernel that is launched so calls `gdc_wait` before it touches what others may write or read. The store of new
tokens and the merge call `gdc_launch_dependents` only then: so whoever begins beside them finds all that came before
them done, and may read what is written once a step before its own wait. (Between what writes that and the first to
read it so, some kernel has to lie that is launched plainly or waits; in a server much does.)

`gdc_wait` waits for all kernels before. One that is to run beside another cannot use it to learn that what came before
*both* is done; so it waits for a flag. The other lowers it when it begins, before it lets anybody begin, and raises it
after its wait.
"""

from functools import cache

import torch
from triton.language import core

_RAISE = "st.release.gpu.global.b32 [$1], 1; mov.b32 $0, 0;"
_LOWER = "st.relaxed.gpu.global.b32 [$1], 0; fence.acq_rel.gpu; mov.b32 $0, 0;"
_AWAIT = """{
.reg .pred lowered;
again: ld.acquire.gpu.global.b32 $0, [$1];
setp.eq.b32 lowered, $0, 0;
@lowered bra again;
}"""


@cache
def dependent_launch(device: int) -> bool:
    """Whether a GPU (its index) can do it; a negative one is none."""
    return device >= 0 and torch.cuda.get_device_capability(device) >= (9, 0)


@core.extern
def raise_flag(flag, _semantic=None):
    """What this thread has seen done, those see done that wait for the flag (int32)."""
    _at(_RAISE, flag, _semantic)


@core.extern
def lower_flag(flag, _semantic=None):
    """Kernels that begin when this one calls `gdc_launch_dependents` find the flag lowered."""
    _at(_LOWER, flag, _semantic)


@core.extern
def await_flag(flag, _semantic=None):
    """Wait until the flag is raised. Who raises it must be running already."""
    _at(_AWAIT, flag, _semantic)


def _at(instructions, pointer, semantic):
    address = pointer.to(core.int64, bitcast=True, _semantic=semantic)
    core.inline_asm_elementwise(
        instructions, "=r,l,~{memory}", [address], dtype=core.int32, is_pure=False, pack=1, _semantic=semantic
    )
