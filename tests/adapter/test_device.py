# SPDX-License-Identifier: Apache-2.0
"""A GPU that cannot hold the virtual tensors is refused before anything is built on it."""

import sys

import pytest
from fake_cuda_python import GRANULARITY, FakeCudaPython

from vt_sglang.adapter.device import check_device


def test_a_device_that_can(cuda_python: FakeCudaPython) -> None:
    check_device(0, 3 * GRANULARITY, 2**40)
    assert cuda_python.is_clean()


def test_a_page_that_is_no_multiple_of_the_granularity(cuda_python: FakeCudaPython) -> None:
    with pytest.raises(ValueError, match=r"pages of 65536 bytes.* 2097152 .*leave --vtensor-page-bytes out"):
        check_device(0, 65536, 100 * 65536)
    assert cuda_python.is_clean()


def test_addresses_that_cannot_be_reserved(cuda_python: FakeCudaPython) -> None:
    with pytest.raises(ValueError, match=r"^32\.00 TiB of GPU addresses.*lower --max-running-requests or --context-le"):
        check_device(0, GRANULARITY, 2**45)
    assert cuda_python.is_clean()


def test_a_device_without_virtual_memory(cuda_python: FakeCudaPython) -> None:
    cuda_python.virtual_memory = 0
    with pytest.raises(ValueError, match="no virtual memory management: serve without --radix-cache-backend vtensor"):
        check_device(0, GRANULARITY, 2**40)


def test_a_failing_cuda_python_is_only_logged(cuda_python: FakeCudaPython, caplog: pytest.LogCaptureFixture) -> None:
    """The core may still work."""
    cuda_python.fail("cuDeviceGet")
    check_device(0, GRANULARITY, 2**40)
    assert "cuDeviceGet: CUDA_ERROR_OUT_OF_MEMORY" in caplog.text


def test_without_cuda_python_the_core_is_left_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    check_device(0, 65536, 2**60)
