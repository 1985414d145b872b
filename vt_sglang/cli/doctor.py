# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang doctor`."""

import typer

from vt_sglang.cli.console import make_console


def doctor() -> None:
    """Say what this machine has for virtual tensors, what is missing or wrong, and how to mend it.

    Exit status: 1 if anything needed is.
    """
    from vt_sglang.doctor import run

    raise typer.Exit(run(make_console()))
