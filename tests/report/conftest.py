# SPDX-License-Identifier: Apache-2.0
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object, str], Path]:
    """Write a result as JSON: `save(result, name)`."""

    def write(result: object, name: str) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(result))
        return path

    return write
