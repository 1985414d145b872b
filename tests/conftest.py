# SPDX-License-Identifier: Apache-2.0
"""Without a GPU, the Triton kernels run in Triton's interpreter, and cuda-python has a stand-in."""

import ctypes
import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

# Before PyTorch is imported: processes run side by side, and threads of one would wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that puts a command into the background lets it ignore Ctrl-C, and what it starts as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


# Files that take half a minute and more, so that none of them is left to the end, where the other processes would have
# nothing to do beside it. Those that start servers wait now and then, and stand beside such that never do.
LONG = (
    "adapter/test_scheduler.py",
    "end_to_end/test_chat.py",
    "core/test_stateful.py",
    "bench/test_serve.py",
    "adapter/test_server.py",
    "bench/test_elastic.py",
    "core/test_cuda_stateful.py",
    "adapter/test_elastic.py",
    "bench/test_steady_servers.py",
    "bench/test_steady_served_trace.py",
    "kernels/test_shared_decode.py",
    "kernels/test_prefill.py",
    "kernels/test_decode.py",
    "kernels/test_prefill_hopper_plan.py",
    "adapter/test_soak.py",
    "adapter/test_float8.py",
    "chat/test_cli.py",
    "adapter/test_mixed_batches.py",
    "kernels/test_decode_compiles.py",
    "adapter/test_compat.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the rest as it was."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


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
