# SPDX-License-Identifier: Apache-2.0
"""Where commands print."""

import codecs
import io
import sys

from rich.console import Console

PIPED_WIDTH = 100
"""Columns of what is printed where no terminal tells its own."""

_SIMILAR = {"█": "#", "▓": "=", "▒": "-", "░": ".", "…": "~", "±": "+-"}
"""What stands for a character that the output's encoding lacks."""


def make_console() -> Console:
    """A console as wide as the terminal, or of a fixed width where there is none.

    From now on standard output takes any text: what its encoding lacks, as bars in Latin-1 or a part of a path that is
    not UTF-8, is replaced. (Rich draws frames in ASCII by itself.)
    """
    codecs.register_error("vt_sglang_similar", _similar)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="vt_sglang_similar")
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


def _similar(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SIMILAR.get(it, "?") for it in error.object[error.start : error.end]), error.end
