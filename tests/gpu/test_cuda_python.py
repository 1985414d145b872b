# SPDX-License-Identifier: Apache-2.0
"""What is asked of a real driver through cuda-python agrees with the core and with PyTorch, and leaves nothing."""

import os
from dataclasses import astuple

import pytest
import torch

from vt_sglang._core import KVCache

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
pytest.importorskip("cuda.bindings")


def test_a_device() -> None:
    from vt_sglang.adapter.device import check_device
    from vt_sglang.cuda_device import can_reserve, cuda_device, largest_reservation

    device = cuda_device()
    core = KVCache(driver="cuda", page_bytes=0, token_bytes=1024, slots=2, slot_tokens=1024, budget_pages=1)
    assert device.virtual_memory
    assert device.granularity_bytes == core.page_bytes
    # The driver keeps a part of it back, of which PyTorch knows and this call may not.
    assert device.memory_bytes == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.05)
    reservable = largest_reservation()
    assert can_reserve(reservable)
    check_device(0, device.granularity_bytes, reservable)
    with pytest.raises(ValueError, match="lower --max-running-requests"):
        check_device(0, device.granularity_bytes, 2**56)


def test_driver_costs_are_measured_and_nothing_is_left() -> None:
    from vt_sglang.driver_costs import driver_costs

    driver_costs(pages=2)  # what the driver allocates for itself the first time
    free = torch.cuda.mem_get_info()[0]
    costs = astuple(driver_costs())
    assert all(0 < cost < 1e5 for cost in costs), costs
    assert torch.cuda.mem_get_info()[0] == free


def test_a_page_can_be_exported_as_nccl_does() -> None:
    from vt_sglang.cuda_calls import CudaCalls

    cuda = CudaCalls()
    kind = cuda.driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    sizes = {"page_bytes": 0, "token_bytes": 1024, "slots": 2, "slot_tokens": 1024, "budget_pages": 1}
    core = KVCache(driver="cuda", exportable_pages=True, **sizes)
    with cuda.in_context(0):
        page = cuda("cuMemRetainAllocationHandle", core.base)  # of the padding slot
        try:
            properties = cuda("cuMemGetAllocationPropertiesFromHandle", page)
            if int(properties.requestedHandleTypes) == 0:
                pytest.skip("this machine exports no GPU memory")
            assert int(properties.requestedHandleTypes) == int(kind)
            os.close(int(cuda("cuMemExportToShareableHandle", page, kind, 0)))
        finally:
            cuda("cuMemRelease", page)
