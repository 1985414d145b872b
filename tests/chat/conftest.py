# SPDX-License-Identifier: Apache-2.0
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vt_sglang.chat.launch import Launch

FAKE_SERVER = Path(__file__).with_name("fake_server.py")


@pytest.fixture
def fake() -> Callable[..., Launch]:
    """Launch lines of the fake server: `fake(name, *options)`."""

    def launch(name: str, *options: str) -> Launch:
        return Launch(name, [sys.executable, str(FAKE_SERVER), *options])

    return launch


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Whether a process runs; a zombie does not."""

    def look(process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    return look
