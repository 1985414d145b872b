#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build the core with AddressSanitizer and UndefinedBehaviorSanitizer, in an environment of its own below build/, and
run its tests (tests/core) against it. Arguments are passed on to pytest."""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "build/sanitized"
PYTHON = ENVIRONMENT / "bin/python"


def runtime(name: str) -> str:
    """Path of a sanitizer's runtime, which has to be loaded before Python."""
    compiler = os.environ.get("CXX", "c++")
    path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    found = path.stdout.strip()
    if not os.path.isabs(found):
        sys.exit(f"tools/sanitize.py: {compiler} has no {name}; install the compiler's sanitizer runtimes")
    return found


def pip(*arguments: str | Path) -> None:
    """Run pip install in the environment; CalledProcessError if it fails."""
    command = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    subprocess.run(list(map(str, command)), check=True)


def main() -> None:
    if not PYTHON.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    pip("-r", ROOT / "requirements/build.txt", "numpy", "pytest", "pytest-xdist", "hypothesis")
    settings = (
        "cmake.define.VT_SANITIZE=ON",
        "cmake.define.VT_WERROR=ON",
        f"build-dir={ROOT / 'build/sanitized-core'}",
    )
    build = [f"--config-settings={setting}" for setting in settings]
    pip("--no-build-isolation", "--no-deps", "--force-reinstall", *build, ROOT)
    environment = os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')}:{runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves memory behind at its end
        "PYTHONMALLOC": "malloc",  # its arenas would hide errors
        # The state machine's steps take several times as long here.
        "VT_TEST_STEPS": os.environ.get("VT_TEST_STEPS", "10000"),
    }
    core = ROOT / "tests/core"
    # The core's tests need neither Triton nor what tests/conftest.py prepares for the others.
    options = ["-q", "-p", "no:cacheprovider", "-n", "2", f"--confcutdir={core}"]
    tests = [str(PYTHON), "-m", "pytest", *options, str(core), *sys.argv[1:]]
    # Elsewhere than at the top, where the source folder would be imported in place of what was built.
    sys.exit(subprocess.run(tests, env=environment, cwd=ROOT / "tests", check=False).returncode)


if __name__ == "__main__":
    main()
