# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang watch`."""

from typing import Annotated

import typer

from vt_sglang.cli.console import make_console


def watch(
    url: Annotated[str | None, typer.Argument(help="Address of the server, as http://127.0.0.1:30000.")] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print JSON.")] = False,
    api_key: Annotated[
        str | None, typer.Option(help="That the server was started with.", envvar="SGLANG_API_KEY", show_envvar=True)
    ] = None,
    events: Annotated[
        str | None,
        typer.Option(
            metavar="ENDPOINT", help="Follow a server's KV events instead, as tcp://127.0.0.1:5557 publishes them."
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="ENDPOINT", help="With --events: where the server replays events that were missed."),
    ] = None,
) -> None:
    """Show a running server: requests, hit rates, memory, the driver's work, the busiest prefixes.

    Reads the server's /metrics (start it with --enable-metrics) and /server_info, and nothing else. Ctrl-C ends it.
    Exit status: 1 if the server does not answer, with --once; else it is waited for.
    """
    if (url is None) == (events is None):
        raise typer.BadParameter("give either the URL of a server or --events ENDPOINT")
    if replay is not None and events is None:
        raise typer.BadParameter("--replay needs --events")
    if as_json and not once:
        raise typer.BadParameter("--json needs --once")
    if events is not None:
        if once:
            raise typer.BadParameter("--once is for a URL; --events has no snapshot to print")
        from vt_sglang.events.watch import watch_events

        raise typer.Exit(watch_events(events, replay, make_console()))

    from vt_sglang.watch.run import watch_live, watch_once
    from vt_sglang.watch.source import AddressError, Source

    try:
        source = Source(str(url), api_key)
    except AddressError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(
        watch_once(source, as_json, make_console()) if once else watch_live(source, interval, make_console())
    )
