# SPDX-License-Identifier: Apache-2.0
"""What the CUDA driver's calls on pages cost on this machine, measured through cuda-python."""

from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns
from typing import Any

from vt_sglang.cuda_calls import CudaCalls


@dataclass(frozen=True)
class DriverCosts:
    """Medians, in microseconds for one page of the device's granularity. cuda-python's own share is in each: less than
    a microsecond."""

    create: float
    map: float
    set_access: float
    unmap: float
    release: float


class _Stopwatch:
    """Calls the driver, and keeps how long each call took."""

    def __init__(self, cuda: CudaCalls) -> None:
        self._cuda = cuda
        self._nanoseconds: dict[str, list[int]] = {}

    def __call__(self, name: str, *arguments: Any) -> Any:
        start = perf_counter_ns()
        result = self._cuda(name, *arguments)
        self._nanoseconds.setdefault(name, []).append(perf_counter_ns() - start)
        return result

    def median(self, name: str) -> float:
        """Microseconds."""
        return median(self._nanoseconds[name]) / 1000


def driver_costs(ordinal: int = 0, pages: int = 64) -> DriverCosts:
    """Create so many pages, map them, give them all back, and time each call.

    Nothing is left allocated, also where a call fails.

    Raises:
        ImportError: cuda-python is not installed.
        CudaError: a call failed; for want of memory, perhaps.
    """
    cuda = CudaCalls()
    timed = _Stopwatch(cuda)
    page, page_bytes = cuda.page(ordinal), cuda.granularity(ordinal)
    access = cuda.driver.CUmemAccessDesc()
    access.location = cuda.location(ordinal)
    access.flags = cuda.driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    handles: list[Any] = []
    mapped: list[int] = []
    with cuda.in_context(ordinal), ExitStack() as left:
        base = int(cuda("cuMemAddressReserve", pages * page_bytes, 0, 0, 0))
        # What is left when a call fails. The first error is what counts, so results are not looked at here.
        left.callback(cuda.driver.cuMemAddressFree, base, pages * page_bytes)
        left.callback(lambda: [cuda.driver.cuMemRelease(handle) for handle in handles])
        left.callback(lambda: [cuda.driver.cuMemUnmap(address, page_bytes) for address in mapped])
        for _ in range(pages):
            handles.append(timed("cuMemCreate", page_bytes, page, 0))  # noqa: PERF401  # all that exist, on failure too
        for index, handle in enumerate(handles):
            timed("cuMemMap", base + index * page_bytes, page_bytes, 0, handle, 0)
            mapped.append(base + index * page_bytes)
        for address in mapped:
            timed("cuMemSetAccess", address, page_bytes, [access], 1)
        while mapped:
            timed("cuMemUnmap", mapped[-1], page_bytes)
            mapped.pop()
        while handles:
            timed("cuMemRelease", handles[-1])
            handles.pop()
    return DriverCosts(
        create=timed.median("cuMemCreate"),
        map=timed.median("cuMemMap"),
        set_access=timed.median("cuMemSetAccess"),
        unmap=timed.median("cuMemUnmap"),
        release=timed.median("cuMemRelease"),
    )
