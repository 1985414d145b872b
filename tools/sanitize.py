#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build the core with sanitizers, in environments of its own below build/, and run its tests (tests/core) against it:
all of them under AddressSanitizer and UndefinedBehaviorSanitizer, those with several threads under ThreadSanitizer.

    python tools/sanitize.py [memory|threads] [options of pytest]
"""

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "tests/core"
ENVIRONMENT = ROOT / "build/sanitized"
PYTHON = ENVIRONMENT / "bin/python"
LOGS = ROOT / "build/sanitizer"  # what is found goes to build/sanitizer.PROCESS: pytest would swallow it


@dataclass(frozen=True)
class Pass:
    """A build, and what is run against it.

    The state machine's steps take several times as long as without sanitizers; `steps` are enough for every operation.
    """

    sanitizers: str
    runtimes: tuple[str, ...]
    environment: dict[str, str]
    steps: int
    tests: tuple[str, ...]


PASSES = {
    "memory": Pass(
        sanitizers="address,undefined",
        runtimes=("libasan.so", "libubsan.so"),
        environment={
            "ASAN_OPTIONS": f"detect_leaks=0 log_path={LOGS}",  # Python leaves memory behind at its end
            "UBSAN_OPTIONS": f"print_stacktrace=1 log_path={LOGS}",
            "PYTHONMALLOC": "malloc",  # its arenas would hide errors
        },
        steps=3_000,
        tests=(),
    ),
    "threads": Pass(
        sanitizers="thread",
        runtimes=("libtsan.so",),
        environment={"TSAN_OPTIONS": f"halt_on_error=1 exitcode=66 log_path={LOGS}"},
        steps=3_000,
        tests=("-k", "ahead or thread"),
    ),
}


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


def run(name: str, options: list[str]) -> int:
    """Build for a pass and run its tests; pytest's exit status."""
    it = PASSES[name]
    settings = (
        f"cmake.define.VT_SANITIZE={it.sanitizers}",
        "cmake.define.VT_WERROR=ON",
        "install.strip=false",
        f"build-dir={ROOT / 'build' / f'sanitized-{name}'}",
    )
    build = [f"--config-settings={setting}" for setting in settings]
    pip("--no-build-isolation", "--no-deps", "--force-reinstall", *build, ROOT)
    environment = os.environ | it.environment | {"LD_PRELOAD": ":".join(map(runtime, it.runtimes))}
    environment.setdefault("VT_TEST_STEPS", str(it.steps))
    # The core's tests need neither Triton nor what tests/conftest.py prepares for the others.
    common = ["-q", "-p", "no:cacheprovider", "-n", "2", f"--confcutdir={CORE}"]
    tests = [str(PYTHON), "-m", "pytest", *common, str(CORE), *it.tests, *options]
    for log in LOGS.parent.glob(f"{LOGS.name}.*"):
        log.unlink()
    # Elsewhere than at the top, where the source folder would be imported in place of what was built.
    status = subprocess.run(tests, env=environment, cwd=CORE, check=False).returncode
    for log in LOGS.parent.glob(f"{LOGS.name}.*"):
        print(log.read_text(errors="replace"))
        status = status or 1
    return status


def main() -> None:
    names = [name for name in PASSES if name in sys.argv[1:2]] or list(PASSES)
    options = sys.argv[2:] if sys.argv[1:2] == names else sys.argv[1:]
    if not PYTHON.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    pip("-r", ROOT / "requirements/build.txt", "numpy", "pytest", "pytest-xdist", "hypothesis")
    for name in names:
        status = run(name, options)
        if status != 0:
            sys.exit(status)


if __name__ == "__main__":
    main()
