# SPDX-License-Identifier: Apache-2.0
"""A `cuda.bindings.driver` for machines without a GPU: strict about every call, and able to fail any."""

import itertools
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

GRANULARITY = 2 * 2**20
MEMORY = 80 * 2**30


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201


OK = CUresult.CUDA_SUCCESS
Result = tuple[Any, ...]


class FakeCudaPython:
    """One device's memory. Every method named cu... is a call of the driver; what they leave behind is counted."""

    def __init__(self) -> None:
        self.handles: set[int] = set()
        self.reservations: dict[int, int] = {}
        self.mappings: dict[int, int] = {}
        self.contexts = 0
        self.current = 0
        self.most_reserved = 2**44
        self.virtual_memory = 1
        self.rdma = 1
        self.calls: list[str] = []
        self._failing: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def fail(self, name: str, successes: int = 0) -> None:
        """Let the call after so many successful ones, and no other, run out of memory."""
        self._failing[name] = successes

    def is_clean(self) -> bool:
        """Whether everything was given back."""
        return not (self.handles or self.reservations or self.mappings or self.contexts or self.current)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it where cuda-python would be."""
        bindings = ModuleType("cuda.bindings")
        bindings.driver = self._module()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)

    def _module(self) -> SimpleNamespace:
        calls = {name: self._counted(name) for name in dir(self) if name.startswith("cu") and name[2].isupper()}
        return SimpleNamespace(
            **calls,
            CUresult=CUresult,
            CUmemAllocationProp=lambda: SimpleNamespace(allocFlags=SimpleNamespace(gpuDirectRDMACapable=0)),
            CUmemLocation=SimpleNamespace,
            CUmemAccessDesc=SimpleNamespace,
            CUmemAllocationType=SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1),
            CUmemLocationType=SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1),
            CUmemAccess_flags=SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3),
            CUmemAllocationGranularity_flags=SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0),
            CUdevice_attribute=SimpleNamespace(
                CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED=102,
                CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED=110,
            ),
        )

    def _counted(self, name: str) -> Any:
        def call(*arguments: Any) -> Result:
            self.calls.append(name)
            left = self._failing.get(name)
            if left is not None:
                self._failing[name] = left - 1
                if left == 0:
                    return (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None)
            if name.startswith("cuMem") and "Granularity" not in name and self.current == 0:
                return (CUresult.CUDA_ERROR_INVALID_CONTEXT, None)
            result: Result = getattr(self, name)(*arguments)
            return result

        return call

    def cuInit(self, flags: int) -> Result:  # noqa: N802
        return (OK if flags == 0 else CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuDeviceGet(self, ordinal: int) -> Result:  # noqa: N802
        return OK, ordinal

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> Result:  # noqa: N802
        assert device == 0
        return OK, {102: self.virtual_memory, 110: self.rdma}[attribute]

    def cuDeviceTotalMem(self, device: int) -> Result:  # noqa: N802
        assert device == 0
        return OK, MEMORY

    def cuDevicePrimaryCtxRetain(self, device: int) -> Result:  # noqa: N802
        assert device == 0
        self.contexts += 1
        return OK, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> Result:  # noqa: N802
        assert device == 0
        self.contexts -= 1
        return (OK,)

    def cuCtxPushCurrent(self, context: str) -> Result:  # noqa: N802
        assert context == "context"
        self.current += 1
        return (OK,)

    def cuCtxPopCurrent(self) -> Result:  # noqa: N802
        self.current -= 1
        return OK, "context"

    def cuMemGetAllocationGranularity(self, page: SimpleNamespace, option: int) -> Result:  # noqa: N802
        assert (page.type, page.location.type, page.location.id, option) == (1, 1, 0, 0)
        return OK, GRANULARITY

    def cuMemAddressReserve(self, size: int, alignment: int, address: int, flags: int) -> Result:  # noqa: N802
        assert (alignment, address, flags) == (0, 0, 0)
        if size > self.most_reserved or size % GRANULARITY:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        start = next(self._numbers) << 48
        self.reservations[start] = size
        return OK, start

    def cuMemAddressFree(self, address: int, size: int) -> Result:  # noqa: N802
        assert not self.mappings, "addresses freed under mappings"
        assert self.reservations.pop(address) == size
        return (OK,)

    def cuMemCreate(self, size: int, page: SimpleNamespace, flags: int) -> Result:  # noqa: N802
        assert (size, page.location.id, flags) == (GRANULARITY, 0, 0)
        assert page.allocFlags.gpuDirectRDMACapable == self.rdma, "other pages than a server makes"
        self.handles.add(handle := next(self._numbers))
        return OK, handle

    def cuMemRelease(self, handle: int) -> Result:  # noqa: N802
        assert handle not in self.mappings.values(), "a page released that is mapped"
        self.handles.remove(handle)
        return (OK,)

    def cuMemMap(self, address: int, size: int, offset: int, handle: int, flags: int) -> Result:  # noqa: N802
        assert (size, offset, flags) == (GRANULARITY, 0, 0)
        assert any(start <= address < start + length for start, length in self.reservations.items())
        assert address not in self.mappings
        assert handle in self.handles
        self.mappings[address] = handle
        return (OK,)

    def cuMemSetAccess(self, address: int, size: int, access: list[SimpleNamespace], count: int) -> Result:  # noqa: N802
        assert (address in self.mappings, size, count, len(access)) == (True, GRANULARITY, 1, 1)
        assert (access[0].location.id, access[0].flags) == (0, 3)
        return (OK,)

    def cuMemUnmap(self, address: int, size: int) -> Result:  # noqa: N802
        assert size == GRANULARITY
        del self.mappings[address]
        return (OK,)
