# SPDX-License-Identifier: Apache-2.0
"""What every benchmark does alike: medians, the facts of a run, and its JSON."""

import argparse
import json
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def median_seconds(run: Callable[[], object], repeats: int, prepare: Callable[[], object] | None = None) -> float:
    """Median wall time of `run`, in seconds; `prepare` comes before each, unmeasured."""
    times = []
    for _ in range(repeats):
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def natural(text: str) -> int:
    """An option's whole number, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """The same, and not 0."""
    if (number := natural(text)) == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return number


# Not the slash of a relative path or of an address.
_FOLDERS = re.compile(r"(?<![\w.~:/-])/(?:[^/\s'\"=,]+/)*(?=[^/\s'\"=,])")


def short(text: str) -> str:
    """A command's word, or several, with only the names of what lies under absolute paths."""
    return _FOLDERS.sub("", text)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def facts() -> dict[str, Any]:
    """Date, command, versions and machine of this run."""
    processor = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *map(short, sys.argv[1:])]),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("vt-sglang", "sglang", "torch", "triton", "numpy")},
        "machine": {"processor": processor, "system": platform.platform(), "gpu": _gpu()},
    }


def write_json(path: Path, results: object) -> None:
    """Write a run's facts and results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts() | {"results": results}, indent=1) + "\n")
    print(f"\nwritten: {path}")
