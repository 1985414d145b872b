# SPDX-License-Identifier: Apache-2.0
"""Memory of a server, as well as the machine tells.

On a GPU: what the driver says of the server's processes. Where it does not know them (containers have process ids of
their own): what the whole device has in use, less what others were seen to use while this server was idle; so only one
server at a time may be at work. Without a GPU: the processes' proportional set size, which counts a page once however
often it is mapped, less what is backed by files: libraries, which servers share.
"""

import asyncio
import subprocess
from collections.abc import Iterable
from pathlib import Path

from vt_sglang.chat.server import Server

PROCESSES, DIFFERENCE, HOST = "GPU memory of its processes", "GPU memory, by difference", "host memory"
SAMPLE_S = 0.25
MIB = 2**20
# The driver answers in some tens of milliseconds, or in seconds where it has to wake the device.
ASK_TIMEOUT_S = 10.0


class Memory:
    """Of one server. Make it just before the server starts, while no other one is at work."""

    def __init__(self, *, on_gpu: bool) -> None:
        self.how = PROCESSES if on_gpu else HOST
        """What is counted: PROCESSES, DIFFERENCE or HOST."""
        self.peak: int | None = None
        """The most bytes that were read."""
        self._on_gpu = on_gpu
        self._own: int | None = 0
        self._others = device_bytes() if on_gpu else None
        """What the device has in use beside this server."""

    def resume(self) -> None:
        """Others have been at work since this server was last read."""
        used = device_bytes() if self._on_gpu else None
        self._others = None if used is None or self._own is None else used - self._own

    def read(self, server: Server) -> int | None:
        """Bytes that the server has now, None if that cannot be told."""
        self._own = self._read_gpu(server.processes()) if self._on_gpu else host_bytes(server.processes())
        self.peak = max((it for it in (self.peak, self._own) if it is not None), default=None)
        return self._own

    async def watch(self, server: Server, end: asyncio.Event) -> None:
        """Read again and again, until the event happens."""
        while not end.is_set():
            # Not cancelled: a reading that came back late would take another server's memory for this one's.
            await asyncio.to_thread(self.read, server)
            await asyncio.sleep(SAMPLE_S)

    def _read_gpu(self, processes: list[int]) -> int | None:
        known = process_bytes() if self.how == PROCESSES else {}
        if found := known.keys() & set(processes):
            return sum(known[process] for process in found)
        self.how = DIFFERENCE
        used = device_bytes()
        return None if used is None or self._others is None else used - self._others


def process_bytes() -> dict[int, int]:
    """GPU memory by process, as far as the driver tells."""
    pairs = (line.split(",") for line in _ask("--query-compute-apps=pid,used_memory"))
    return {int(pair[0]): int(pair[1]) * MIB for pair in pairs if len(pair) == 2 and all(map(_number, pair))}


def device_bytes() -> int | None:
    """Memory in use on all GPUs; None if there is none or the driver does not tell."""
    used = [int(line) * MIB for line in _ask("--query-gpu=memory.used") if _number(line)]
    return sum(used) if used else None


def host_bytes(processes: Iterable[int]) -> int | None:
    """Proportional set size of processes, without files; None if the kernel does not tell."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except ProcessLookupError:  # it ended meanwhile
            continue
        except OSError:
            return None
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total or None


def _ask(query: str) -> list[str]:
    """Lines of nvidia-smi's answer, none if there is no answer."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _number(text: str) -> bool:
    return text.strip().isdecimal()
