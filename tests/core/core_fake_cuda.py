# SPDX-License-Identifier: Apache-2.0
"""The test's side of fake_cuda.c."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core_harness import PAGE
from core_world import Fault, World

from vt_sglang._core import KVCache

OUT_OF_MEMORY, ILLEGAL_ADDRESS, NOT_PERMITTED = 2, 700, 800

# CU_DEVICE_ATTRIBUTE_...
VIRTUAL_MEMORY, POSIX_HANDLES, RDMA = 102, 103, 110


class FakeCuda:
    """The same library that the core loads: its counters, and a way to let its calls fail."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)
        self._library.fake_cuda_calls.restype = ctypes.c_long
        self._library.fake_cuda_complaint.restype = ctypes.c_char_p
        self._before = self.all_counts()  # not zero after a test that failed, whose objects are still referred to

    def cache(self, token_bytes: int = 1024, **sizes: object) -> KVCache:
        """A cache of small geometry on the fake device."""
        arguments: dict[str, object] = {
            "driver": "cuda",
            "cuda_library": self.path,
            "page_bytes": PAGE,
            "token_bytes": token_bytes,
            "slots": 6,
            "slot_tokens": max(64, 4 * PAGE // token_bytes),
            "budget_pages": 32,
        }
        return KVCache(**(arguments | sizes))  # type: ignore[arg-type]

    def calls(self, name: str) -> int:
        """How often an entry point was called since the last reset."""
        count = self._library.fake_cuda_calls(name.encode())
        assert count >= 0, name
        return count

    def fail(self, name: str, successes: int = 0, code: int = ILLEGAL_ADDRESS) -> None:
        """Let the call after so many successful ones return this CUresult, once."""
        assert self._library.fake_cuda_fail(name.encode(), ctypes.c_long(successes), code) == 0, name

    def limit_memory(self, pages: int) -> None:
        """Let the device have memory for so many pages more."""
        self._library.fake_cuda_limit_memory(ctypes.c_long(pages))

    def clear_failures(self) -> None:
        self._library.fake_cuda_clear_failures()

    def hold(self, name: str | None) -> None:
        """Let every call of this kind wait until it is released with None."""
        self._library.fake_cuda_hold(name and name.encode())

    def waiting(self) -> bool:
        """Whether a call waits."""
        return bool(self._library.fake_cuda_waiting())

    def let_through(self, calls: int = 1) -> None:
        """Let so many calls of the kind that is held go on, the one that waits first; the rest waits as before."""
        self._library.fake_cuda_let_through(calls)

    def delay(self, microseconds: int) -> None:
        """Let every call wait for some time up to this, each for another; until the next reset."""
        self._library.fake_cuda_delay(microseconds)

    @contextmanager
    def exempt(self) -> Iterator[None]:
        """Within this, calls of this thread go on at once, whatever is held or delayed."""
        self._library.fake_cuda_exempt(1)
        try:
            yield
        finally:
            self._library.fake_cuda_exempt(0)

    def count(self, what: str) -> int:
        """How many handles (or rdma or exportable handles), mappings, reservations, contexts or pushed contexts."""
        return self._library.fake_cuda_count(what.encode())

    def support(self, attribute: int, value: bool = True) -> None:
        """Let the devices have a feature, by its CUdevice_attribute, until the next reset."""
        self._library.fake_cuda_support(attribute, int(value))

    def complaint(self) -> str:
        """The first rule of the API that was broken."""
        return self._library.fake_cuda_complaint().decode()

    def reset(self) -> None:
        """Forget calls, failures to come and complaints; hold and delay nothing."""
        self._library.fake_cuda_reset()

    def all_counts(self) -> dict[str, int]:
        """What exists now."""
        return {it: self.count(it) for it in ("mappings", "handles", "reservations", "contexts", "pushed contexts")}

    def verify_nothing_is_left(self) -> None:
        """Every cache is gone, and gave back what it took."""
        assert self.complaint() == ""
        assert self.all_counts() == self._before


ENTRY_POINTS = {  # of which one is to fail
    "create": ("cuMemCreate", "cuCtxPushCurrent"),
    "map": ("cuMemMap", "cuMemSetAccess", "cuMemUnmap"),
    "unmap": ("cuMemUnmap",),
    "copy": ("cuMemcpyDtoDAsync", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"),
    "release": ("cuMemRelease", "cuMemUnmap"),
    "clear": ("cuMemsetD8Async", "cuCtxPushCurrent"),
    "move": ("cuLaunchKernel", "cuModuleLoadData", "cuModuleGetFunction", "cuMemMap", "cuCtxPushCurrent"),
}


@dataclass
class CudaWorld(World):
    """A machine's world on the fake device, where a batch can fail in its midst."""

    fake: FakeCuda | None = None

    def make(self) -> KVCache:
        assert self.fake is not None
        return self.fake.cache(
            self.token_bytes,
            slots=self.slots,
            slot_tokens=24 * self.symbol_tokens,
            budget_pages=self.budget_pages,
            mapping_limit=self.mapping_limit,
            move_pages=self.move_pages,
            map_ahead=self.map_ahead,
            copy_from_pages=self.copy_from_pages,
        )

    def inject(self, cache: KVCache, fault: Fault) -> None:  # noqa: ARG002
        kind, number = fault
        assert self.fake is not None
        names = ENTRY_POINTS[kind]
        self.fake.fail(names[number % len(names)], number // len(names))

    def limit_memory(self, cache: KVCache, pages: int) -> None:  # noqa: ARG002
        assert self.fake is not None
        self.fake.limit_memory(pages)

    def clear_faults(self, cache: KVCache) -> None:  # noqa: ARG002
        assert self.fake is not None
        self.fake.clear_failures()

    def after(self) -> None:
        assert self.fake is not None
        self.fake.verify_nothing_is_left()
