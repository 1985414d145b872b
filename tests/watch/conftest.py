# SPDX-License-Identifier: Apache-2.0
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_metrics import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that has not been told what it is yet."""
    fake = FakeServer()
    yield fake
    fake.stop()
