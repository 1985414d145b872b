# SPDX-License-Identifier: Apache-2.0
"""Without a GPU, the Triton kernels run in Triton's interpreter, and cuda-python has a stand-in."""

import ctypes
import importlib
import os
import sys
from pathlib import Path

import pytest

# What several parts' tests share; pytest's importlib mode puts no folder of tests on the path.
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("fake_cuda_python")

from fake_cuda_python import FakeCudaPython  # noqa: E402


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
    importlib.import_module("triton.experimental.gluon.language")  # the interpreter imports it
    for kernel in (Path(__file__).parent.parent / "triton_kernels").glob("*.py"):
        importlib.import_module(f"vt_sglang.triton_kernels.{kernel.stem}")
    del os.environ["TRITON_INTERPRET"]


@pytest.fixture
def cuda_python(monkeypatch: pytest.MonkeyPatch) -> FakeCudaPython:
    """In place of cuda-python, whether or not it is installed."""
    fake = FakeCudaPython()
    fake.install(monkeypatch)
    return fake
