# SPDX-License-Identifier: Apache-2.0
"""What is asked of the CUDA driver through cuda-python, against a fake one: nothing may be left allocated."""

import sys

import pytest
from fake_cuda_python import GRANULARITY, MEMORY, FakeCudaPython

from vt_sglang.cuda_calls import CudaCalls, CudaError
from vt_sglang.cuda_device import can_reserve, cuda_device, largest_reservation
from vt_sglang.driver_costs import driver_costs

ON_PAGES = {"create": "cuMemCreate", "map": "cuMemMap", "set_access": "cuMemSetAccess"}
ON_PAGES |= {"unmap": "cuMemUnmap", "release": "cuMemRelease"}


def test_a_device(cuda_python: FakeCudaPython) -> None:
    device = cuda_device()
    assert (device.memory_bytes, device.granularity_bytes, device.virtual_memory) == (MEMORY, GRANULARITY, True)
    assert largest_reservation() == 2**44
    assert can_reserve(3 * 2**42)
    assert not can_reserve(2**45)
    assert cuda_python.is_clean()


def test_a_device_without_virtual_memory(cuda_python: FakeCudaPython) -> None:
    cuda_python.virtual_memory = 0
    device = cuda_device()
    assert (device.virtual_memory, device.granularity_bytes) == (False, 0)
    assert "cuMemGetAllocationGranularity" not in cuda_python.calls


def test_no_addresses(cuda_python: FakeCudaPython) -> None:
    cuda_python.most_reserved = 2**29
    assert largest_reservation() == 0
    assert cuda_python.is_clean()


@pytest.mark.parametrize("name", ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuMemAddressFree"])
def test_an_error_names_the_call(cuda_python: FakeCudaPython, name: str) -> None:
    cuda_python.fail(name)
    with pytest.raises(CudaError, match=f"^{name}: CUDA_ERROR_OUT_OF_MEMORY$"):
        largest_reservation()
    assert (cuda_python.contexts, cuda_python.current) == (0, 0)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ImportError):
        CudaCalls()


def test_a_driver_that_lacks_a_call(cuda_python: FakeCudaPython) -> None:  # noqa: ARG001
    with pytest.raises(CudaError, match=r"^cuMemNothing: .*cuMemNothing"):
        CudaCalls()("cuMemNothing")


@pytest.mark.parametrize("rdma", [0, 1])
def test_costs_are_of_pages_as_a_server_makes_them(cuda_python: FakeCudaPython, rdma: int) -> None:
    cuda_python.rdma = rdma
    assert driver_costs(pages=2).map > 0


def test_costs_are_of_every_page(cuda_python: FakeCudaPython) -> None:
    costs = driver_costs(pages=5)
    for field, name in ON_PAGES.items():
        assert cuda_python.calls.count(name) == 5, name
        assert getattr(costs, field) > 0
    assert cuda_python.is_clean()


@pytest.mark.parametrize("successes", [0, 2, 4])
@pytest.mark.parametrize("name", ON_PAGES.values())
def test_costs_that_cannot_be_measured_leave_nothing(cuda_python: FakeCudaPython, name: str, successes: int) -> None:
    """The first, a middle and the last call of each kind fails."""
    cuda_python.fail(name, successes)
    with pytest.raises(CudaError, match=f"^{name}: CUDA_ERROR_OUT_OF_MEMORY$"):
        driver_costs(pages=5)
    assert cuda_python.is_clean()


def test_costs_without_addresses(cuda_python: FakeCudaPython) -> None:
    cuda_python.fail("cuMemAddressReserve")
    with pytest.raises(CudaError, match="cuMemAddressReserve"):
        driver_costs()
    assert cuda_python.is_clean()
