# SPDX-License-Identifier: Apache-2.0
"""What this machine has for virtual tensors, what is missing, and how to get that.

Nothing heavy is imported, and each finding stands for itself: what is absent makes no other check fail.
"""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vt_sglang import machine
from vt_sglang.adapter.compat import SUPPORTED_SGLANG
from vt_sglang.config import VTensorConfig
from vt_sglang.cuda_calls import CudaError
from vt_sglang.cuda_device import cuda_device, largest_reservation
from vt_sglang.driver_costs import driver_costs
from vt_sglang.layout import DEVICE_PAGE_BYTES

PLUGIN_GROUP, PLUGIN = "sglang.srt.plugins", "vtensor"
MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
# What 512 requests of 16,384 tokens take at 128 KiB a token, the KV cache of an 8B model.
ENOUGH_ADDRESS_BYTES = 1 << 40


class State(Enum):
    OK = "[green]ok[/]"
    NOTE = "[yellow]note[/]"
    MISSING = "[red]missing[/]"
    WRONG = "[red]wrong[/]"


@dataclass(frozen=True)
class Finding:
    what: str
    found: str
    state: State = State.OK
    remedy: str = ""
    """How to get what is missing, or what goes without it."""


def run(console: Console) -> int:
    """Print all findings. Returns the exit status: 1 if something needed is missing or wrong."""
    findings = examine()
    shown = Table("", "found", "")
    for finding in findings:
        shown.add_row(finding.what, escape(finding.found), finding.state.value)
    console.print(shown)
    for finding in findings:
        if finding.remedy:
            console.print(f"{finding.state.value} {finding.what}: {escape(finding.remedy)}", soft_wrap=True)
    bad = {state: [it.what for it in findings if it.state is state] for state in (State.MISSING, State.WRONG)}
    told = [f"{state.name.capitalize()}: {', '.join(names)}" for state, names in bad.items() if names]
    console.print(f"[red]{'; '.join(told)}[/]" if told else "[green]Nothing needed is missing[/]")
    return int(bool(told))


def examine() -> list[Finding]:
    """Everything, in the order in which it is shown."""
    gpus = machine.gpus()
    driver = "cuda" if gpus.names else "host"
    return [
        *_packages(),
        _plugin(),
        _options(),
        Finding("processor", f"{machine.cpu_model()}, {machine.cores()} cores"),
        Finding("memory", _size(machine.memory_bytes())),
        Finding("GPU", ", ".join(gpus.names) or f"none: {gpus.reason}"),
        Finding("memory driver", f"{driver} (what a server takes here, unless told otherwise)"),
        *(_device() if gpus.names else _host()),
        *_core(driver),
    ]


def _packages() -> Iterator[Finding]:
    versions = machine.versions()
    yield Finding("Python", f"{versions['python']}")
    yield Finding("vt-sglang", versions["vt-sglang"] or "a source tree that is not installed")
    sglang = versions["sglang"]
    if sglang is not None and sglang.split("+")[0] == SUPPORTED_SGLANG:
        yield Finding("SGLang", f"{sglang}, supported")
    else:
        found = "not installed" if sglang is None else f"{sglang}, not supported"
        remedy = f"pip install sglang=={SUPPORTED_SGLANG}; without a GPU, as README.md says"
        yield Finding("SGLang", found, State.MISSING, remedy)
    yield _package("torch", "SGLang brings it on a machine with a GPU; for others, README.md says how")
    yield _package("triton", "SGLang needs it, on a CPU too: pip install triton")


def _package(name: str, remedy: str) -> Finding:
    version = machine.installed(name)
    return Finding(name, version) if version else Finding(name, "not installed", State.MISSING, remedy)


def _plugin() -> Finding:
    """Whether SGLang will find the plug-in; that it can be loaded there, only SGLang shows."""
    if points := entry_points(group=PLUGIN_GROUP, name=PLUGIN):
        return Finding("plug-in", f"{PLUGIN} = {next(iter(points)).value}")
    return Finding("plug-in", f"no entry point {PLUGIN}", State.MISSING, "install this package: pip install .")


def _options() -> Finding:
    """Whether a server takes the variables that are set here."""
    try:
        VTensorConfig.from_environment()
    except ValueError as error:
        remedy = "a server started with this environment refuses it; correct the variable, or unset it"
        return Finding("options", str(error), State.WRONG, remedy)
    return Finding("options", "a server takes the VTENSOR_ variables of this environment")


def _device() -> Iterator[Finding]:
    try:
        device = cuda_device()
        reservable = largest_reservation()
    except ImportError:
        remedy = 'without it, nothing is known here of the device\'s memory: pip install "cuda-python>=12.8"'
        yield Finding("cuda-python", "not installed", State.NOTE, remedy)
        return
    except CudaError as error:
        remedy = "a server needs these calls of the CUDA driver; nvidia-smi says whether it is well"
        yield Finding("CUDA driver", str(error), State.MISSING, remedy)
        return
    yield Finding("GPU memory", _size(device.memory_bytes))
    if not device.virtual_memory:
        remedy = "virtual tensors cannot be mapped on this GPU; take another, or serve without them"
        yield Finding("virtual memory management", "not supported by the device", State.MISSING, remedy)
        return
    yield Finding("page size", f"{_size(device.granularity_bytes)}, the device's granularity")
    yield _addresses(reservable)
    yield _costs()


def _costs() -> Finding:
    try:
        costs = driver_costs()
    except CudaError as error:
        remedy = "they are measured on some pages of the GPU's memory; nvidia-smi says what is free"
        return Finding("driver costs", f"cannot be measured: {error}", State.NOTE, remedy)
    calls = ", ".join(f"{field.name.replace('_', ' ')} {getattr(costs, field.name):.3g}" for field in fields(costs))
    return Finding("driver costs", f"{calls} us a page")


def _host() -> Iterator[Finding]:
    system = _size(os.sysconf("SC_PAGE_SIZE"))
    yield Finding("page size", f"{_size(DEVICE_PAGE_BYTES)}, less for very small models; the system's page is {system}")
    yield _addresses(machine.largest_reservation_bytes())
    yield Finding("vm.max_map_count", MAX_MAP_COUNT.read_text().strip())


def _addresses(reservable: int) -> Finding:
    found = f"{_size(reservable)} can be reserved at once"
    if reservable >= ENOUGH_ADDRESS_BYTES:
        return Finding("address space", found)
    remedy = f"a server wants {_size(ENOUGH_ADDRESS_BYTES)} or more: ulimit -v unlimited"
    return Finding("address space", found, State.MISSING, remedy)


def _core(driver: str) -> Iterator[Finding]:
    """Load the C++ core, and let two virtual tensors share a page."""
    try:
        from vt_sglang import _core
    except ImportError as error:
        remedy = "install the package again; building it takes a C++20 compiler"
        yield Finding("C++ core", f"cannot be loaded: {error}", State.MISSING, remedy)
        return
    if driver == "host":
        yield _runs(_core.host_mapping_limit())
    tokens, shared = array("q", range(6)), 4
    try:
        cache = _core.KVCache(
            driver=driver,
            page_bytes=DEVICE_PAGE_BYTES,
            token_bytes=DEVICE_PAGE_BYTES // shared,
            slots=3,
            slot_tokens=len(tokens),
            budget_pages=4,
        )
        first, *_ = cache.bind(None, 0, len(tokens))
        cache.record(first, tokens)
        node, _ = cache.match(None, tokens, shared)
        cache.lock(node)
        cache.bind(None, node, len(tokens))
        cache.check()
    except (_core.DriverError, _core.InvariantError) as error:
        yield Finding("C++ core", str(error), State.MISSING, "virtual tensors do not work here; please report it")
        return
    yield Finding("C++ core", f"works; {cache.counters()['pages_aliased']} page shared by two virtual tensors")


def _runs(limit: int) -> Finding:
    found = f"{limit:,d} runs of pages and gaps between them"
    if limit * DEVICE_PAGE_BYTES >= machine.memory_bytes():
        return Finding("may be mapped", found)
    remedy = f"enough for {_size(limit * DEVICE_PAGE_BYTES)}; for more: sudo sysctl -w vm.max_map_count=1048576"
    return Finding("may be mapped", found, State.NOTE, remedy)


def _size(count: int) -> str:
    """Bytes, in the largest unit of which they hold one."""
    exponent = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**exponent:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[exponent]}"
