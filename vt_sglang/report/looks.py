# SPDX-License-Identifier: Apache-2.0
"""How the sides of a comparison are told apart: by colour and, for those who do not see colours, by form."""

from collections.abc import Sequence
from typing import NamedTuple

VTENSOR, STOCK, OTHERS, REFERENCE = 0, 1, (2, 3, 4, 5), 6
"""Indexes into a theme's colours. REFERENCE is the grey of floors, targets and limits."""

SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "cross", "x", "line-ns-open")
DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot", "solid", "dot")
PATTERNS = ("", "/", ".", "x", "\\", "+", "-")
"""By form, of points, lines and bars."""


class Look(NamedTuple):
    colour: int
    form: int


def look(index: int) -> Look:
    """Colour and form of the same index."""
    return Look(index, index)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """By name: virtual tensors and stock SGLang look the same in every plot; others follow in their order."""
    found: dict[str, Look] = {}
    free = [*OTHERS, VTENSOR, STOCK]
    for index, prefix in ((VTENSOR, ("vtensor", "triton")), (STOCK, ("stock", "radix", "sglang", "baseline"))):
        for name in names:
            if any(part.startswith(prefix) for part in name.lower().split(": ")):
                found[name] = look(index)
                free.remove(index)
                break
    for name in names:
        if name not in found:
            found[name] = look(free.pop(0) if len(free) > 1 else free[0])
    return found
