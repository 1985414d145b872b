# SPDX-License-Identifier: Apache-2.0
"""What a wheel of this tree brings into an environment."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Path and text of every text file in the wheel; of others, the path alone."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode() if not name.endswith(".so") else "" for name in archive.namelist()}


def test_kernels_are_inside_the_package(names: dict[str, str]) -> None:
    kernels = {f"vt_sglang/{path.relative_to(ROOT)}" for path in (ROOT / "triton_kernels").glob("*.py")}
    assert kernels
    assert kernels <= names.keys()


def test_only_the_package_is_installed(names: dict[str, str]) -> None:
    """`triton_kernels` at top level is the name of another package, which SGLang's kernels bring."""
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vt_sglang"}


def test_sglang_finds_the_plugin(names: dict[str, str]) -> None:
    (text,) = (text for name, text in names.items() if name.endswith("entry_points.txt"))
    entry_points = configparser.ConfigParser()
    entry_points.read_string(text)
    assert dict(entry_points["sglang.srt.plugins"]) == {"vtensor": "vt_sglang.adapter.plugin:install"}


def test_no_requirement_brings_cuda(names: dict[str, str]) -> None:
    (metadata,) = (text for name, text in names.items() if name.endswith("METADATA"))
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert required
    assert not [line for line in required if any(name in line for name in ("sglang", "torch", "triton", "cuda"))]
    assert "License-Expression: Apache-2.0" in metadata


def test_everything_of_the_core_is_there(names: dict[str, str]) -> None:
    assert any(name.startswith("vt_sglang/_core") and name.endswith(".so") for name in names)
    assert "vt_sglang/_core.pyi" in names


def test_the_page_of_reports_is_there(names: dict[str, str]) -> None:
    report = ROOT / "vt_sglang/report"
    files = {f"vt_sglang/report/{path.name}" for path in report.iterdir() if path.suffix in (".py", ".css", ".js")}
    assert {"vt_sglang/report/page.css", "vt_sglang/report/page.js"} < files
    assert files <= names.keys()
