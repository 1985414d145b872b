# SPDX-License-Identifier: Apache-2.0
"""Without a GPU, the Triton kernels run in Triton's interpreter."""

import ctypes
import os


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


if not _has_driver():
    # Triton reads the variable when it is imported and when a kernel is. It is taken back at once, so that servers
    # which tests start run as users start them.
    os.environ["TRITON_INTERPRET"] = "1"

    # The interpreter imports Gluon, which wants the variable too.
    import triton.experimental.gluon.language  # noqa: F401
    import vt_sglang.triton_kernels.decode  # noqa: F401

    del os.environ["TRITON_INTERPRET"]
