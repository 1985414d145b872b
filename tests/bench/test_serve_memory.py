# SPDX-License-Identifier: Apache-2.0
"""The memory of a server, on machines that tell more or less of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import serve_memory
from serve_memory import DIFFERENCE, HOST, MIB, PROCESSES, Memory


class Processes:
    """Of a server, its process ids."""

    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)

    def processes(self) -> list[int]:
        return self.ids


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what nvidia-smi answers: `smi(processes, device)`; None takes it away."""

    def answer(processes: str | None, device: str = "") -> None:
        program = tmp_path / "nvidia-smi"
        program.unlink(missing_ok=True)
        if processes is not None:
            program.write_text(
                f"#!/bin/sh\ncase $1 in *compute-apps*) printf '{processes}';; *) printf '{device}';; esac\n"
            )
            program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return answer


def test_the_driver_knows_the_processes(smi: Any) -> None:
    smi(r"7, 100\n8, 30\n9, 5\n10, [N/A]\n", r"1000\n")
    memory = Memory(on_gpu=True)
    assert memory.read(Processes(6, 7, 9, 10)) == 105 * MIB
    smi(r"7, 60\n", r"1000\n")
    assert memory.read(Processes(7)) == 60 * MIB
    assert (memory.peak, memory.how) == (105 * MIB, PROCESSES)


def test_the_driver_knows_the_device_alone(smi: Any) -> None:
    smi("", r"50\n")
    first = Memory(on_gpu=True)
    smi("", r"150\n")
    assert first.read(Processes(7)) == 100 * MIB
    second = Memory(on_gpu=True)
    smi("", r"450\n")
    assert second.read(Processes(8)) == 300 * MIB
    first.resume()
    smi("", r"470\n")
    assert first.read(Processes(7)) == 120 * MIB
    second.resume()
    smi("", r"460\n")
    assert second.read(Processes(8)) == 290 * MIB
    assert (first.peak, second.peak) == (120 * MIB, 300 * MIB)
    assert first.how == second.how == DIFFERENCE


@pytest.mark.parametrize("processes", [None, ""])
def test_nothing_is_known(smi: Any, processes: str | None) -> None:
    smi(processes, r"[N/A]\n")
    memory = Memory(on_gpu=True)
    memory.resume()
    assert memory.read(Processes(7)) is None
    memory.resume()
    assert memory.read(Processes(7)) is None
    assert memory.peak is None


def test_on_the_host_a_page_counts_once() -> None:
    """A child that maps the same shared memory twice and writes it through both."""
    code = (
        "import mmap, os, sys\n"
        "file = os.memfd_create('pages'); os.ftruncate(file, int(sys.argv[1]))\n"
        "maps = [mmap.mmap(file, 0) for _ in range(2)]\n"
        "for it in maps: it[:] = bytes([1]) * len(it)\n"
        "print(flush=True); sys.stdin.read()"
    )
    size = 64 * MIB
    with subprocess.Popen(
        [sys.executable, "-c", code, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        memory = Memory(on_gpu=False)
        assert memory.how == HOST
        read = memory.read(Processes(child.pid))
        assert child.stdin is not None
        child.stdin.close()
    assert read is not None
    assert size <= read < size * 3 // 2 + 32 * MIB
    assert memory.read(Processes(child.pid)) is None  # it has ended
    assert memory.peak == read
    assert serve_memory.host_bytes([]) is None
