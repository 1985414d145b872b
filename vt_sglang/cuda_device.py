# SPDX-License-Identifier: Apache-2.0
"""What CUDA's virtual memory management can do on a device, asked through cuda-python."""

from dataclasses import dataclass
from typing import Any

MOST_RESERVED_EXPONENT = 47


@dataclass(frozen=True)
class CudaDevice:
    memory_bytes: int
    granularity_bytes: int
    """Smallest physical page, and what every page's size must be a multiple of."""
    reservable_bytes: int
    """The largest power of two, up to 128 TiB, of addresses that can be reserved at once."""


class CudaError(RuntimeError):
    """A call of the CUDA driver failed."""


def cuda_device(ordinal: int = 0) -> CudaDevice:
    """Look at a device; nothing is left allocated. ImportError without cuda-python, CudaError if the driver fails."""
    from cuda.bindings import driver

    def checked(result: tuple[Any, ...]) -> Any:
        status, *values = result
        if status != driver.CUresult.CUDA_SUCCESS:
            raise CudaError(status.name)
        return values[0] if values else None

    checked(driver.cuInit(0))
    device = checked(driver.cuDeviceGet(ordinal))
    page = driver.CUmemAllocationProp()
    page.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    page.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    page.location.id = ordinal
    minimum = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    granularity = checked(driver.cuMemGetAllocationGranularity(page, minimum))

    checked(driver.cuDevicePrimaryCtxRetain(device))  # reserving needs the driver to have a context
    try:
        return CudaDevice(
            memory_bytes=int(checked(driver.cuDeviceTotalMem(device))),
            granularity_bytes=int(granularity),
            reservable_bytes=_largest_reservation(driver, checked),
        )
    finally:
        checked(driver.cuDevicePrimaryCtxRelease(device))


def _largest_reservation(driver: Any, checked: Any) -> int:
    for exponent in range(MOST_RESERVED_EXPONENT, 29, -1):
        try:
            address = checked(driver.cuMemAddressReserve(1 << exponent, 0, 0, 0))
        except CudaError:
            continue
        checked(driver.cuMemAddressFree(address, 1 << exponent))
        return 1 << exponent
    return 0
