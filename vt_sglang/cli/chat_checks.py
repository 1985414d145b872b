# SPDX-License-Identifier: Apache-2.0
"""Options of `vt-sglang chat` that make no sense together."""

from dataclasses import replace
from fractions import Fraction
from math import isfinite
from pathlib import Path

from vt_sglang.chat.generator import Shape
from vt_sglang.chat.launch import is_whole
from vt_sglang.chat.settings import Answers, RateOf, Saturation, Settings
from vt_sglang.chat.thinking import Thinking

MOST_GENERATED = 10**9
"""Tokens of generated dialogues: hours of generating, and more memory than most machines have."""


def check(settings: Settings, shape: Shape, clients: int | None, default: Shape, search: Saturation | None) -> None:
    """Raise ValueError, saying what to do, for the first thing that makes no sense.

    Args:
        shape: what would be generated.
        clients: as given; None: not given.
        default: what is generated if nothing is said.
        search: how to search the highest load, if anything was said of it.
    """
    for wrong, message in (
        *_workload(settings, shape, default),
        *_load(settings, clients),
        *_servers(settings),
        *_search(settings, search),
    ):
        if wrong:
            raise ValueError(message)


def _workload(settings: Settings, shape: Shape, default: Shape) -> list[tuple[bool, str]]:
    from_file = isinstance(settings.dialogues, Path)
    drawn = replace(shape, seed=default.seed)  # the seed is also that of arrivals and think times
    load = settings.load
    seedless = load.rate is None and not load.think_time_s
    a_turn = shape.user_tokens + Fraction(shape.tool_share) * shape.tool_tokens  # exact, of any size
    tokens = shape.num_dialogues * shape.turns * a_turn + shape.system_prompts * shape.system_tokens
    said = drawn != default or (seedless and shape.seed != default.seed)
    return [
        (
            from_file and said,
            "dialogues are either read (--dialogues) or generated (--num-dialogues and so on)",
        ),
        (settings.answers is Answers.FILE and not from_file, "--answers file needs --dialogues"),
        (
            not from_file and tokens > MOST_GENERATED,
            f"these dialogues would have more than {MOST_GENERATED:,} tokens; generate fewer or shorter ones "
            "(--num-dialogues, --turns, --user-tokens and so on)",
        ),
        (settings.skip_bad and not from_file, "--skip-bad needs --dialogues"),
        (shape.system_prompts > 1 and not shape.system_tokens, "--system-prompts needs --system-tokens"),
        (shape.tool_share != default.tool_share and not shape.tool_tokens, "--tool-share needs --tool-tokens"),
    ]


def _load(settings: Settings, clients: int | None) -> list[tuple[bool, str]]:
    load, dialogues = settings.load, settings.dialogues
    own = isinstance(dialogues, Path) and load.arrivals is not None and dialogues.samefile(load.arrivals)
    numbers = (load.rate, load.time_scale, load.think_time_s, settings.ttft_limit_ms, settings.itl_limit_ms)
    infinite = not all(number is None or isfinite(number) for number in numbers)
    return [
        (infinite, "rates, times and limits are finite numbers"),
        (
            load.rate is not None and load.arrivals is not None,
            "arrivals are either drawn (--rate) or read (--arrivals)",
        ),
        (
            load.is_open and clients is not None,
            "--clients is for a closed loop; an open one (--rate, --arrivals) has --max-in-flight",
        ),
        (load.max_in_flight is not None and not load.is_open, "--max-in-flight needs --rate or --arrivals"),
        (load.time_scale != 1 and load.arrivals is None, "--time-scale needs --arrivals"),
        (load.rate_of is not RateOf.CONVERSATIONS and load.rate is None, "--rate-of needs --rate"),
        (load.thinking is not Thinking.EXPONENTIAL and not load.think_time_s, "--think needs --think-time"),
        (own and settings.skip_bad, "--skip-bad would mix up the timestamps of --dialogues: use another --arrivals"),
    ]


def _servers(settings: Settings) -> list[tuple[bool, str]]:
    sides = settings.sides
    theirs = [bool(side.url or is_whole(side.words)) for side in sides]
    return [
        (
            bool(sides) and bool(settings.only or settings.stock_args or settings.vtensor_args),
            "--only, --stock-args and --vtensor-args are for stock and vtensor; give other servers by --compare alone",
        ),
        (
            bool(sides) and all(theirs) and bool(settings.server_args),
            "--server-args would go to no server: one with a --url runs already, and a whole launch line is complete",
        ),
        (
            any(theirs) and settings.model_path is None,
            "servers with a --url or a whole launch line need --model-path: its tokenizer encodes the dialogues",
        ),
    ]


def _search(settings: Settings, search: Saturation | None) -> list[tuple[bool, str]]:
    asked, load = settings.saturation is not None, settings.load
    limited = settings.ttft_limit_ms is not None or settings.itl_limit_ms is not None
    return [
        (asked and not limited, "--saturate needs --ttft-limit-ms or --itl-limit-ms"),
        (asked and load.arrivals is not None, "--saturate searches over --rate or --clients, not --arrivals"),
        (asked and settings.repeats > 1, "--saturate repeats what fails by itself; leave --repeats out"),
        (
            search is not None and not asked,
            "--limit-percentile, --saturate-tolerance, --max-probes, --probe-seconds, --probe-requests need --saturate",
        ),
    ]
