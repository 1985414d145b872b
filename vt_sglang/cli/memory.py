# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang memory`."""

import sys
from typing import Annotated

import typer

from vt_sglang.cli.console import make_console


def memory(
    url: Annotated[str, typer.Argument(help="Address of the server, as http://127.0.0.1:30000.")],
    limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What the KV cache may take from now on: 12GiB, 40% of the budget, or none."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, max=86400, metavar="SECONDS", help="With --limit: how long to wait for the memory.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_key: Annotated[
        str | None, typer.Option(help="That the server was started with.", envvar="SGLANG_API_KEY", show_envvar=True)
    ] = None,
) -> None:
    """Show what a running server's KV cache takes, or set another limit.

    Below what it takes, cached prefixes are evicted, least recently used first, and their memory goes back to the
    device; what running requests hold goes when they end. The limit can be raised again, up to what the server was
    started with.

    Exit status: 1 if the server does not answer or refuses, or if more than the limit is still taken after --wait.
    """
    from vt_sglang.watch.memory import LimitError, parse_limit, read, set_limit, show
    from vt_sglang.watch.memory import as_json as to_json
    from vt_sglang.watch.source import AddressError, NoAnswerError, Source

    try:
        source = Source(url, api_key)
        rows = read(source)
        if limit is not None:
            rows = set_limit(source, parse_limit(limit, rows[0].budget_bytes, rows[0].page_bytes), wait)
    except (AddressError, LimitError) as error:
        raise typer.BadParameter(str(error)) from None
    except NoAnswerError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(to_json(rows))
    else:
        show(rows, make_console())
    raise typer.Exit(int(limit is not None and any(it.above_bytes for it in rows)))
