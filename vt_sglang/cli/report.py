# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang report`."""

from pathlib import Path
from typing import Annotated

import typer

from vt_sglang.cli.console import make_console


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="JSON files of `vt-sglang chat` or `replay`, or of the scripts in bench/.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML page to write; what is there is replaced.", dir_okay=False),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Picture of one plot to write, .png or .svg; on dark ground it goes to NAME-dark beside it. "
            "Needs Chromium.",
            dir_okay=False,
        ),
    ] = None,
    figure: Annotated[
        str | None, typer.Option(help="Which plot the picture shows, by its name.", show_default=False)
    ] = None,
    table: Annotated[bool, typer.Option(help="Print the numbers in the terminal.")] = True,
) -> None:
    """Show results: an HTML page with plots that needs no network, the same numbers in the terminal, or a picture.

    Results of one kind stand side by side. Exit status: 1 if Chromium draws no picture; 2 if a file is not a result or
    the options make no sense; nothing is written then.
    """
    from vt_sglang.report.load import ReportError
    from vt_sglang.report.run import MissingError, run

    if figure is not None and picture is None:
        raise typer.BadParameter("--figure chooses what --picture shows: give both")
    try:
        run(runs, output, picture, figure, make_console() if table else None)
    except ReportError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    except MissingError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
