# SPDX-License-Identifier: Apache-2.0
"""Stand-in for SGLang's kernels on a machine without a GPU, where they cannot be installed.

SGLang 0.5.17 imports names from `sgl_kernel` even for its CPU engine, and calls none of them on the paths that plain
PyTorch serves. Any name can be imported; calling one says what is wrong.
"""

from collections.abc import Callable
from typing import Any, NoReturn

__version__ = "0.4.5"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("_"):
        raise AttributeError(name)

    def absent(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} needs SGLang's kernels, which are not installed on this machine")

    return absent
