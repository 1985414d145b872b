# SPDX-License-Identifier: Apache-2.0
"""Calls of the CUDA driver through cuda-python: what fails is an exception that names the call and the error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class CudaError(RuntimeError):
    """A call of the CUDA driver failed."""


class CudaCalls:
    """The CUDA driver, initialised. ImportError without cuda-python, CudaError if the driver fails."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.driver = driver
        self("cuInit", 0)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The result of a call, None if it has none."""
        try:
            status, *values = getattr(self.driver, name)(*arguments)
        except (AttributeError, RuntimeError) as error:  # no libcuda, or one too old to have the entry point
            raise CudaError(f"{name}: {error}") from None
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise CudaError(f"{name}: {status.name}")
        return values[0] if values else None

    @contextmanager
    def in_context(self, ordinal: int) -> Iterator[None]:
        """With a device's primary context current, as reserving and mapping need it."""
        device = self("cuDeviceGet", ordinal)
        context = self("cuDevicePrimaryCtxRetain", device)
        try:
            self("cuCtxPushCurrent", context)
            try:
                yield
            finally:
                self("cuCtxPopCurrent")
        finally:
            self("cuDevicePrimaryCtxRelease", device)

    def page(self, ordinal: int) -> Any:
        """What a page of a device's memory is, as the core makes it: a CUmemAllocationProp."""
        page = self.driver.CUmemAllocationProp()
        page.type = self.driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        page.location = self.location(ordinal)
        attribute = self.driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED
        rdma = self("cuDeviceGetAttribute", attribute, self("cuDeviceGet", ordinal))
        page.allocFlags.gpuDirectRDMACapable = int(bool(rdma))
        return page

    def location(self, ordinal: int) -> Any:
        """A device's memory, as a CUmemLocation."""
        location = self.driver.CUmemLocation()
        location.type = self.driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = ordinal
        return location

    def granularity(self, ordinal: int) -> int:
        """Bytes of a device's smallest page, of which every page's size must be a multiple."""
        minimum = self.driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        return int(self("cuMemGetAllocationGranularity", self.page(ordinal), minimum))
