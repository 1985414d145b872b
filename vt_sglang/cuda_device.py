# SPDX-License-Identifier: Apache-2.0
"""What CUDA's virtual memory management can do on a device, asked through cuda-python. Nothing is left allocated.

ImportError without cuda-python, CudaError if the driver fails.
"""

from dataclasses import dataclass

from vt_sglang.cuda_calls import CudaCalls, CudaError

MOST_RESERVED_EXPONENT = 47


@dataclass(frozen=True)
class CudaDevice:
    memory_bytes: int
    virtual_memory: bool
    """Whether the device has virtual memory management; without it, it has no granularity either."""
    granularity_bytes: int
    """Smallest physical page, and what every page's size must be a multiple of."""


def cuda_device(ordinal: int = 0) -> CudaDevice:
    """Look at a device."""
    cuda = CudaCalls()
    device = cuda("cuDeviceGet", ordinal)
    attribute = cuda.driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
    virtual_memory = bool(cuda("cuDeviceGetAttribute", attribute, device))
    return CudaDevice(
        memory_bytes=int(cuda("cuDeviceTotalMem", device)),
        virtual_memory=virtual_memory,
        granularity_bytes=cuda.granularity(ordinal) if virtual_memory else 0,
    )


def can_reserve(count: int, ordinal: int = 0) -> bool:
    """Whether so many bytes of addresses, a multiple of the granularity, can be reserved at once."""
    cuda = CudaCalls()
    with cuda.in_context(ordinal):
        return _can_reserve(cuda, count)


def largest_reservation(ordinal: int = 0) -> int:
    """The largest power of two, up to 128 TiB, of bytes of addresses that can be reserved at once; 0 if not 1 GiB."""
    cuda = CudaCalls()
    with cuda.in_context(ordinal):
        sizes = (1 << exponent for exponent in range(MOST_RESERVED_EXPONENT, 29, -1))
        return next((size for size in sizes if _can_reserve(cuda, size)), 0)


def _can_reserve(cuda: CudaCalls, count: int) -> bool:
    try:
        address = cuda("cuMemAddressReserve", count, 0, 0, 0)
    except CudaError:
        return False
    cuda("cuMemAddressFree", address, count)
    return True
