# SPDX-License-Identifier: Apache-2.0
"""In which order a core is told what."""

from typing import Any

from vt_sglang._core import KVCache


class Recorded:
    """A core, and what is asked of it.

    Args:
        core: does the work.
        told: names of attributes are added to this as they are taken.
    """

    def __init__(self, core: KVCache, told: list[str]) -> None:
        self._core, self._told = core, told

    def __getattr__(self, name: str) -> Any:
        self._told.append(name)
        return getattr(self._core, name)
