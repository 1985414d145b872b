# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang replay`."""

from pathlib import Path
from typing import Annotated

import typer

from vt_sglang.cli.console import make_console
from vt_sglang.replay.form import Format
from vt_sglang.replay.sizes import DTYPE_BYTES, LARGEST_BYTES, MODELS, MOST_TOKENS

TRACE, CACHE, OUTPUT = "Trace", "Cache", "Output"


def replay(
    trace: Annotated[
        Path, typer.Argument(help="The trace, gzipped or not.", exists=True, dir_okay=False, show_default=False)
    ],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Mooncake's block ids, chat messages, token ids, or SGLang's request logs; auto: what it looks like.",
            rich_help_panel=TRACE,
        ),
    ] = Format.AUTO,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass broken lines over, and count them.", rich_help_panel=TRACE)
    ] = False,
    outputs: Annotated[bool, typer.Option(help="Record outputs too, as a server does.", rich_help_panel=TRACE)] = True,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Model whose tokenizer turns text into tokens. Default: a token a byte.",
            rich_help_panel=TRACE,
            show_default=False,
        ),
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(
            help="Sizes of the cache, by commas: 20GiB (bytes), or 200000, 200k, 0.2M (tokens). "
            "Default: an eighth, a quarter, a half and all of the largest reuse distance, in pages as full as an "
            "infinite cache's.",
            rich_help_panel=CACHE,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help=f"Whose KV: {', '.join(MODELS)}, or a config.json or its folder.",
            rich_help_panel=CACHE,
        ),
    ] = "llama-3-8b",
    kv_dtype: Annotated[
        str, typer.Option(help=f"In what it is kept: {', '.join(DTYPE_BYTES)}.", rich_help_panel=CACHE)
    ] = "bfloat16",
    token_bytes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST_BYTES,
            help="KV bytes of a token, in place of a model.",
            rich_help_panel=CACHE,
            show_default=False,
        ),
    ] = None,
    page_bytes: Annotated[str, typer.Option(help="Size of a physical page.", rich_help_panel=CACHE)] = "2MiB",
    grain: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_TOKENS,
            help="Cache whole blocks of so many tokens, for comparison with block caches. 1: token for token.",
            rich_help_panel=CACHE,
        ),
    ] = 1,
    chunk: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_TOKENS,
            help="Tokens of a prompt that are recorded at a time, as by SGLang's --chunked-prefill-size; 0: all.",
            rich_help_panel=CACHE,
        ),
    ] = 8192,
    slots: Annotated[int, typer.Option(min=1, max=65535, help="Virtual tensors.", rich_help_panel=CACHE)] = 64,
    radix: Annotated[
        bool, typer.Option(help="Run SGLang's RadixCache beside it, where SGLang is installed.", rich_help_panel=CACHE)
    ] = True,
    repeats: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Run each cache so often, in turns; the fastest time counts.", rich_help_panel=OUTPUT
        ),
    ] = 1,
    json: Annotated[
        Path | None,
        typer.Option(help="File for all results.", dir_okay=False, rich_help_panel=OUTPUT, show_default=False),
    ] = None,
) -> None:
    """Run a trace of requests through the prefix cache, without a model: what is shared, and what size catches it.

    Exit status: 2 if the trace or the options make no sense.
    """
    from vt_sglang.chat.encoding import EncodingError
    from vt_sglang.replay.request import TraceError
    from vt_sglang.replay.run import run
    from vt_sglang.replay.settings import Settings, UsageError
    from vt_sglang.replay.sizes import SizeError

    if kv_dtype not in DTYPE_BYTES:
        raise typer.BadParameter(f"--kv-dtype {kv_dtype}: choose {', '.join(DTYPE_BYTES)}")
    settings = Settings(
        trace=trace,
        form=form,
        skip_bad=skip_bad,
        outputs=outputs,
        tokenizer=tokenizer,
        capacities=() if capacity is None else tuple(capacity.split(",")),
        model=model,
        kv_dtype=kv_dtype,
        token_bytes=token_bytes,
        page_bytes=page_bytes,
        grain=grain,
        chunk=chunk,
        slots=slots,
        radix=radix,
        repeats=repeats,
        json=json,
    )
    try:
        run(settings, make_console())
    except (TraceError, SizeError, UsageError, EncodingError) as error:
        raise typer.BadParameter(str(error)) from None
