# SPDX-License-Identifier: Apache-2.0
"""Where commands print."""

from rich.console import Console

PIPED_WIDTH = 100
"""Columns of what is printed where no terminal tells its own."""


def make_console() -> Console:
    """A console as wide as the terminal, or of a fixed width where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)
