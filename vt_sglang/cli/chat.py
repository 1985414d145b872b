# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang chat`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vt_sglang.chat.generator import Shape
from vt_sglang.chat.settings import Answers, Device, Settings, Which
from vt_sglang.cli.console import make_console

DEFAULT_SHAPE = Shape(num_dialogues=24, turns=4, system_tokens=512, user_tokens=64, forks=0.25, seed=0)

WORKLOAD, GENERATED, SERVERS, OUTPUT = "Workload", "Generated dialogues, where no file is given", "Servers", "Output"


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise typer.BadParameter(f"{error}: {text}") from None


def chat(
    model_path: Annotated[
        str | None,
        typer.Option(
            help="Folder or name of the model. Default: a toy Llama with random weights, made on first use.",
            rich_help_panel=SERVERS,
        ),
    ] = None,
    dialogues: Annotated[
        Path | None,
        typer.Option(
            help="Dialogues to play: JSON Lines, gzipped or not, each with `messages`: [{role, content}, ...].",
            exists=True,
            dir_okay=False,
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Play only the first so many dialogues.", rich_help_panel=WORKLOAD)
    ] = None,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of every answer.", rich_help_panel=WORKLOAD)] = 32,
    clients: Annotated[
        int,
        typer.Option(min=1, help="Clients at the same time; each waits for its answers.", rich_help_panel=WORKLOAD),
    ] = 4,
    answers: Annotated[
        Answers,
        typer.Option(
            help="Answers with which the history goes on: the server's, or those of the file.",
            rich_help_panel=WORKLOAD,
        ),
    ] = Answers.GENERATED,
    num_dialogues: Annotated[
        int, typer.Option(min=1, help="How many.", rich_help_panel=GENERATED)
    ] = DEFAULT_SHAPE.num_dialogues,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each.", rich_help_panel=GENERATED)] = DEFAULT_SHAPE.turns,
    system_tokens: Annotated[
        int, typer.Option(min=0, help="Length of the system prompt that all share.", rich_help_panel=GENERATED)
    ] = DEFAULT_SHAPE.system_tokens,
    user_tokens: Annotated[
        int, typer.Option(min=1, help="Mean length of what a user says.", rich_help_panel=GENERATED)
    ] = DEFAULT_SHAPE.user_tokens,
    forks: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of dialogues that fork from the middle of an earlier one.",
            rich_help_panel=GENERATED,
        ),
    ] = DEFAULT_SHAPE.forks,
    seed: Annotated[
        int, typer.Option(help="Another seed, other dialogues.", rich_help_panel=GENERATED)
    ] = DEFAULT_SHAPE.seed,
    device: Annotated[
        Device, typer.Option(help="Where the servers run; auto: on a GPU if there is one.", rich_help_panel=SERVERS)
    ] = Device.AUTO,
    context_length: Annotated[
        int, typer.Option(min=1, help="Tokens that a sequence may have.", rich_help_panel=SERVERS)
    ] = 4096,
    max_total_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of the KV cache. Default: 32768 on a CPU, what memory allows on a GPU.",
            rich_help_panel=SERVERS,
        ),
    ] = None,
    server_args: Annotated[
        str, typer.Option(help="Further arguments for both servers, in one string.", rich_help_panel=SERVERS)
    ] = "",
    stock_args: Annotated[str, typer.Option(help="For the stock server alone.", rich_help_panel=SERVERS)] = "",
    vtensor_args: Annotated[
        str, typer.Option(help="For the server with virtual tensors alone.", rich_help_panel=SERVERS)
    ] = "",
    only: Annotated[
        Which | None, typer.Option(help="Run one server, compare nothing.", rich_help_panel=SERVERS)
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(min=1, help="Seconds that a server's start, or one answer, may take.", rich_help_panel=SERVERS),
    ] = 600,
    report: Annotated[
        Path,
        typer.Option(help="JSON file of all results; logs go beside it.", dir_okay=False, rich_help_panel=OUTPUT),
    ] = Path("report/chat.json"),
) -> None:
    """Play the same dialogues on stock SGLang and on SGLang with virtual tensors, and compare the two.

    Both answer greedily. Exit status: 1 if their outputs differ, a request failed, a server did not start or reported a
    leak; 2 if the options make no sense.
    """
    from vt_sglang.chat.dialogues import DialogueError
    from vt_sglang.chat.encoding import EncodingError
    from vt_sglang.chat.run import UsageError, run
    from vt_sglang.chat.server import ServerError

    shape = Shape(num_dialogues, turns, system_tokens, user_tokens, forks, seed)
    if dialogues and shape != DEFAULT_SHAPE:
        raise typer.BadParameter("dialogues are either read (--dialogues) or generated (--num-dialogues and so on)")
    if answers is Answers.FILE and not dialogues:
        raise typer.BadParameter("--answers file needs --dialogues")
    settings = Settings(
        model_path=model_path,
        dialogues=dialogues or shape,
        limit=limit,
        output_tokens=output_tokens,
        clients=clients,
        answers=answers,
        device=device,
        context_length=context_length,
        max_total_tokens=max_total_tokens,
        server_args=_split(server_args),
        stock_args=_split(stock_args),
        vtensor_args=_split(vtensor_args),
        only=only,
        report=report,
        timeout_s=timeout,
    )
    try:
        status = run(settings, make_console())
    except (DialogueError, EncodingError, UsageError) as error:
        raise typer.BadParameter(str(error)) from None
    except ServerError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(status)
