# SPDX-License-Identifier: Apache-2.0
"""What this machine is, and which versions are installed; found out without importing anything heavy."""

import ctypes
import mmap
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

CUDA_LIBRARY = "libcuda.so.1"

PROT_NONE = 0  # the module mmap has no name for it


class Gpus(NamedTuple):
    """The CUDA devices that this process may use."""

    names: list[str]
    reason: str
    """Why there is none; empty where there are some."""


def gpus() -> Gpus:
    """Ask the CUDA driver itself: it honours CUDA_VISIBLE_DEVICES, and no package need be installed."""
    try:
        cuda = ctypes.CDLL(CUDA_LIBRARY)
    except OSError:
        return Gpus([], f"no CUDA driver ({CUDA_LIBRARY}) on this machine")
    count = ctypes.c_int()
    if status := cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return Gpus([], f"the CUDA driver answers with error {status}")
    names = []
    for ordinal in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
        cuda.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return Gpus(names, "" if names else "the CUDA driver sees no device")


def cpu_model() -> str:
    """The processor's name, or its architecture where the kernel tells no name."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def installed(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on."""
    packages = ("vt-sglang", "sglang", "torch", "triton", "transformers")
    return {"python": platform.python_version()} | {package: installed(package) for package in packages}


def largest_reservation_bytes() -> int:
    """The largest power of two, up to 128 TiB, of host addresses that this process may reserve; 0 if not even 1 GiB."""
    for exponent in range(47, 29, -1):
        try:
            with mmap.mmap(-1, 1 << exponent, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=PROT_NONE):
                return 1 << exponent
        except OSError:
            continue
    return 0
