# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang chat`."""

from pathlib import Path

import typer

from vt_sglang.chat.generator import Shape
from vt_sglang.chat.settings import Answers, Device, Load, RateOf, Saturation, Settings
from vt_sglang.chat.sides import parse, split_words
from vt_sglang.chat.thinking import Thinking
from vt_sglang.cli import chat_options as opt
from vt_sglang.cli.chat_checks import check
from vt_sglang.cli.console import make_console

DEFAULT_SHAPE = Shape(num_dialogues=24, turns=4, system_tokens=512, user_tokens=64, forks=0.25, seed=0)
DEFAULT_CLIENTS = 4
DEFAULT_SEARCH = Saturation(percentile=99, tolerance=0.1, max_probes=16, probe_seconds=30, probe_requests=100)


def chat(
    model_path: opt.ModelPath = None,
    dialogues: opt.Dialogues = None,
    limit: opt.Limit = None,
    skip_bad: opt.SkipBad = False,
    output_tokens: opt.OutputTokens = 32,
    answers: opt.AnswersFrom = Answers.GENERATED,
    num_dialogues: opt.NumDialogues = DEFAULT_SHAPE.num_dialogues,
    turns: opt.Turns = DEFAULT_SHAPE.turns,
    system_prompts: opt.SystemPrompts = DEFAULT_SHAPE.system_prompts,
    system_tokens: opt.SystemTokens = DEFAULT_SHAPE.system_tokens,
    user_tokens: opt.UserTokens = DEFAULT_SHAPE.user_tokens,
    tool_tokens: opt.ToolTokens = DEFAULT_SHAPE.tool_tokens,
    tool_share: opt.ToolShare = DEFAULT_SHAPE.tool_share,
    forks: opt.Forks = DEFAULT_SHAPE.forks,
    seed: opt.Seed = DEFAULT_SHAPE.seed,
    clients: opt.Clients = None,
    rate: opt.Rate = None,
    rate_of: opt.RateCounts = RateOf.CONVERSATIONS,
    arrivals: opt.Arrivals = None,
    time_scale: opt.TimeScale = 1.0,
    max_in_flight: opt.MaxInFlight = None,
    think_time: opt.ThinkTime = 0.0,
    think: opt.Think = Thinking.EXPONENTIAL,
    compare: opt.Compare = None,
    url: opt.Url = None,
    repeats: opt.Repeats = 1,
    together: opt.Together = False,
    warm_up: opt.WarmUp = 0,
    ttft_limit_ms: opt.TtftLimit = None,
    itl_limit_ms: opt.ItlLimit = None,
    saturate: opt.Saturate = False,
    limit_percentile: opt.LimitPercentile = DEFAULT_SEARCH.percentile,
    saturate_tolerance: opt.Tolerance = DEFAULT_SEARCH.tolerance,
    max_probes: opt.MaxProbes = DEFAULT_SEARCH.max_probes,
    probe_seconds: opt.ProbeSeconds = DEFAULT_SEARCH.probe_seconds,
    probe_requests: opt.ProbeRequests = DEFAULT_SEARCH.probe_requests,
    device: opt.RunsOn = Device.AUTO,
    context_length: opt.ContextLength = 4096,
    max_total_tokens: opt.MaxTotalTokens = None,
    server_args: opt.ServerArgs = "",
    stock_args: opt.StockArgs = "",
    vtensor_args: opt.VtensorArgs = "",
    only: opt.Only = None,
    timeout: opt.Timeout = 600,
    report: opt.Report = Path("report/chat.json"),
    sample_every: opt.SampleEvery = 1.0,
) -> None:
    """Play the same dialogues on several SGLang servers and compare them: stock and virtual tensors, or any others.

    All answer greedily. Exit status: 1 if stock and virtual tensors differ in their outputs, a request failed, a server
    did not start or reported a leak; 2 if the options make no sense.
    """
    from vt_sglang.chat.dialogues import DialogueError
    from vt_sglang.chat.encoding import EncodingError
    from vt_sglang.chat.run import UsageError, run
    from vt_sglang.chat.server import ServerError

    shape = Shape(
        num_dialogues, turns, system_tokens, user_tokens, forks, seed, system_prompts, tool_tokens, tool_share
    )
    search = Saturation(limit_percentile, saturate_tolerance, max_probes, probe_seconds, probe_requests)
    try:
        settings = Settings(
            model_path=model_path,
            dialogues=dialogues or shape,
            limit=limit,
            output_tokens=output_tokens,
            clients=clients or DEFAULT_CLIENTS,
            answers=answers,
            device=device,
            context_length=context_length,
            max_total_tokens=max_total_tokens,
            server_args=tuple(split_words("--server-args", server_args)),
            stock_args=tuple(split_words("--stock-args", stock_args)),
            vtensor_args=tuple(split_words("--vtensor-args", vtensor_args)),
            only=only,
            report=report,
            timeout_s=timeout,
            skip_bad=skip_bad,
            load=Load(rate, rate_of, arrivals, time_scale, max_in_flight, think_time, think, seed),
            sides=parse(compare or (), url or ()),
            repeats=repeats,
            together=together,
            warm_up=warm_up,
            sample_s=sample_every,
            ttft_limit_ms=ttft_limit_ms,
            itl_limit_ms=itl_limit_ms,
            saturation=search if saturate else None,
        )
        check(settings, shape, clients, DEFAULT_SHAPE, search if search != DEFAULT_SEARCH else None)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        status = run(settings, make_console())
    except (DialogueError, EncodingError, UsageError) as error:
        raise typer.BadParameter(str(error)) from None
    except ServerError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(status)
