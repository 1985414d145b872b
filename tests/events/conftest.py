# SPDX-License-Identifier: Apache-2.0
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from event_world import FakePublisher


@pytest.fixture
def publisher() -> Iterator[FakePublisher]:
    with FakePublisher() as made:
        yield made
