# SPDX-License-Identifier: Apache-2.0
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
from fake_cuda_python import FakeCudaPython
from typer.testing import CliRunner

from vt_sglang import doctor, machine
from vt_sglang.adapter.compat import SUPPORTED_SGLANG
from vt_sglang.cli import app
from vt_sglang.doctor import State

WHOLE = {"vt-sglang": "0.1.0", "sglang": SUPPORTED_SGLANG, "torch": "2.0", "triton": "3.0", "transformers": "5.0"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What importlib.metadata finds: change it at will."""
    packages = dict(WHOLE)

    def version(name: str) -> str:
        try:
            return packages[name]
        except KeyError:
            raise PackageNotFoundError(name) from None

    monkeypatch.setattr(machine, "version", version)
    monkeypatch.setattr(machine, "gpus", lambda: machine.Gpus([], "no CUDA driver"))
    return packages


def diagnose() -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor"])
    return result.exit_code, result.output


@pytest.mark.usefixtures("installed")
def test_all_is_there() -> None:
    status, said = diagnose()
    assert status == 0, said
    assert "Nothing needed is missing" in said
    assert "none: no CUDA driver" in said
    assert "works; 1 page shared by two virtual tensors" in said


@pytest.mark.parametrize(
    ("package", "version", "remedy"),
    [
        ("sglang", None, f"pip install sglang=={SUPPORTED_SGLANG}"),
        ("sglang", "0.4.0", f"pip install sglang=={SUPPORTED_SGLANG}"),
        ("torch", None, "README.md"),
        ("triton", None, "pip install triton"),
    ],
)
def test_a_missing_package(installed: dict[str, str], package: str, version: str | None, remedy: str) -> None:
    del installed[package]
    if version is not None:
        installed[package] = version
    status, said = diagnose()
    assert status == 1
    assert remedy in said
    assert said.splitlines()[-1].lower() == f"missing: {package}"


def test_a_build_of_the_supported_release_is_supported(installed: dict[str, str]) -> None:
    installed["sglang"] = f"{SUPPORTED_SGLANG}+local"
    assert diagnose()[0] == 0


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("VTENSOR_DECODE_KERNEL", "nope", "VTENSOR_DECODE_KERNEL: 'nope' is no attention kernel"),
        ("VTENSOR_PREFIL_KERNEL", "x", "the nearest is VTENSOR_PREFILL_KERNEL"),
    ],
)
def test_an_option_that_a_server_refuses(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    status, said = diagnose()
    assert status == 1
    findings = {finding.what: finding for finding in doctor.examine()}
    assert says in findings["options"].found
    assert "correct the variable, or unset it" in said
    assert said.splitlines()[-1] == "Wrong: options"


@pytest.mark.usefixtures("installed")
def test_a_missing_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PLUGIN", "another")
    status, said = diagnose()
    assert status == 1
    assert said.splitlines()[-1] == "Missing: plug-in"


@pytest.mark.usefixtures("installed")
def test_a_missing_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vt_sglang._core", None)
    monkeypatch.delattr("vt_sglang._core", raising=False)
    status, said = diagnose()
    assert status == 1
    assert "cannot be loaded" in said
    assert said.splitlines()[-1] == "Missing: C++ core"


@pytest.mark.usefixtures("installed")
def test_too_little_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "largest_reservation_bytes", lambda: 2**39)
    status, said = diagnose()
    assert status == 1
    assert "512 GiB can be reserved at once" in said
    assert "ulimit -v unlimited" in said


@pytest.mark.usefixtures("installed")
def test_few_mappings_are_noted_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2**50)
    status, said = diagnose()
    assert status == 0
    assert "sudo sysctl -w vm.max_map_count" in said


@pytest.mark.usefixtures("installed")
def test_a_gpu_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: machine.Gpus(["Some GPU"], ""))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["GPU"].found == "Some GPU"
    assert findings["memory driver"].found.startswith("cuda")
    assert findings["cuda-python"].state is State.NOTE
    assert 'pip install "cuda-python>=12.8"' in findings["cuda-python"].remedy


@pytest.fixture
def gpu(installed: dict[str, str], cuda_python: FakeCudaPython, monkeypatch: pytest.MonkeyPatch) -> FakeCudaPython:  # noqa: ARG001
    """A machine with one."""
    monkeypatch.setattr(machine, "gpus", lambda: machine.Gpus(["Some GPU"], ""))
    return cuda_python


def test_a_gpu(gpu: FakeCudaPython) -> None:
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["GPU memory"].found == "80 GiB"
    assert findings["page size"].found == "2 MiB, the device's granularity"
    assert findings["address space"].found == "16 TiB can be reserved at once"
    number = r"[\d.e+-]+"
    calls = rf"create {number}, map {number}, set access {number}, unmap {number}, release {number} us a page"
    assert re.fullmatch(calls, findings["driver costs"].found)
    assert findings["driver costs"].state is State.OK
    assert gpu.is_clean()


def test_driver_costs_that_cannot_be_measured(gpu: FakeCudaPython) -> None:
    """On a card whose memory a server has, for example: worth a note, and nothing stays taken."""
    gpu.fail("cuMemCreate", 10)
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["driver costs"].found == "cannot be measured: cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY"
    assert findings["driver costs"].state is State.NOTE
    assert "nvidia-smi" in findings["driver costs"].remedy
    assert findings["page size"].state is State.OK
    assert gpu.is_clean()


def test_a_driver_that_fails(gpu: FakeCudaPython) -> None:
    gpu.fail("cuDevicePrimaryCtxRetain")
    status, said = diagnose()
    assert status == 1
    assert "cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY" in said
    assert "Traceback" not in said


def test_a_gpu_without_virtual_memory(gpu: FakeCudaPython) -> None:
    gpu.virtual_memory = 0
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["virtual memory management"].state is State.MISSING
    assert "driver costs" not in findings


def test_works_where_nothing_is_installed() -> None:
    """In a process in which the heavy packages cannot be imported, and are not known to be installed."""
    program = (
        "import sys, importlib.metadata as metadata\n"
        "absent = ('sglang', 'torch', 'triton', 'transformers', 'cuda')\n"
        "for name in absent: sys.modules[name] = None\n"
        "known = metadata.version\n"
        "def version(name):\n"
        "    if name in absent: raise metadata.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        "metadata.version = version\n"
        "from vt_sglang.cli import app\n"
        "app(['doctor'])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said.returncode == 1, said.stderr
    assert said.stdout.splitlines()[-1] == "Missing: SGLang, torch, triton"


def test_reservation_is_a_power_of_two_that_holds() -> None:
    size = machine.largest_reservation_bytes()
    assert size.bit_count() == 1
    assert 2**30 <= size <= 2**47


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (4096, "4 KiB"), (2**21, "2 MiB"), (3 * 2**29, "1.5 GiB"), (2**47, "128 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert doctor._size(count) == text
