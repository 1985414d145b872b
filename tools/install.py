#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Install SGLang, this project and its development tools into the Python environment that runs this script.

    python -m venv .venv && .venv/bin/python tools/install.py [--device cpu|cuda]

On a machine with an NVIDIA driver: SGLang with the CUDA stack that it pins. Without one: SGLang's CPU engine, no CUDA
package. Everything that decides what is installed is in requirements/.
"""

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def has_cuda() -> bool:
    """Whether an NVIDIA driver with a device is here."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def pip(*arguments: str | Path) -> None:
    """Run pip install; exit with its status if it fails."""
    # Without a GPU, much that SGLang names as required is left out on purpose, which pip would call broken each time.
    quiet = ["-q", "--disable-pip-version-check", "--no-warn-conflicts"]
    command = [sys.executable, "-m", "pip", "install", *quiet, *map(str, arguments)]
    print("+", *command, flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        sys.exit(f"tools/install.py: pip failed; its messages above say why (status {done.returncode})")


def install_for_cpu() -> None:
    """SGLang's CPU engine, as far as plain PyTorch serves it."""
    # TORCH_INDEX_URL: an index of PyTorch's CPU builds, where the default one has only CUDA's.
    index = ["--extra-index-url", os.environ["TORCH_INDEX_URL"]] if os.environ.get("TORCH_INDEX_URL") else []
    pip(*index, "-r", ROOT / "requirements/cpu.txt")
    pip("--no-deps", "-r", ROOT / "requirements/cpu-no-deps.txt")
    site = Path(sysconfig.get_paths()["purelib"])
    # It registers operators that torchvision has only with its compiled part, which needs another PyTorch.
    (site / "torchvision/_meta_registrations.py").write_text("")
    if not (site / "sgl_kernel").exists():
        shutil.copytree(ROOT / "tools/cpu/sgl_kernel", site / "sgl_kernel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is a device, else cpu")
    device = parser.parse_args().device or ("cuda" if has_cuda() else "cpu")
    if sys.prefix == sys.base_prefix:
        sys.exit("tools/install.py: run it with the Python of a virtual environment (python3 -m venv .venv)")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        sys.exit("tools/install.py: a C++ compiler is needed (Debian: apt install g++)")
    print(f"installing for {device}", flush=True)
    if device == "cpu":
        install_for_cpu()
    else:
        pip("-r", ROOT / "requirements/cuda.txt")
    pip("-r", ROOT / "requirements/build.txt", "-r", ROOT / "requirements/dev.txt")
    pip("--no-build-isolation", "--editable", ROOT)


if __name__ == "__main__":
    main()
