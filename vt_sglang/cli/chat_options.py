# SPDX-License-Identifier: Apache-2.0
"""The options of `vt-sglang chat`, as types."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vt_sglang.chat.settings import Answers, Device, RateOf, Which
from vt_sglang.chat.thinking import Thinking

WORKLOAD, GENERATED = "Workload", "Generated dialogues, where no file is given"
LOAD, COMPARISON, SATURATION = "Load", "Comparison", "Limits and the search for the highest load"
SERVERS, OUTPUT = "Servers", "Output"


def _option(panel: str, help_: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel=panel, **more)


_FILE = {"exists": True, "dir_okay": False}

# Workload
Dialogues = Annotated[
    Path | None,
    _option(
        WORKLOAD,
        "Dialogues to play: JSON Lines or a JSON array, gzipped or not, of objects with `messages`: "
        "[{role, content}, ...] or, as ShareGPT has them, `conversations`: [{from, value}, ...].",
        **_FILE,
    ),
]
Limit = Annotated[int | None, _option(WORKLOAD, "Play only the first so many dialogues.", min=1)]
SkipBad = Annotated[bool, _option(WORKLOAD, "Leave out and count entries that are no dialogues.", "--skip-bad")]
OutputTokens = Annotated[int, _option(WORKLOAD, "Tokens of every answer.", min=1)]
AnswersFrom = Annotated[
    Answers, _option(WORKLOAD, "Answers with which the history goes on: the server's, or those of the file.")
]

# Generated dialogues
NumDialogues = Annotated[int, _option(GENERATED, "How many.", min=1)]
Turns = Annotated[int, _option(GENERATED, "Turns of each.", min=1)]
SystemPrompts = Annotated[int, _option(GENERATED, "Different system prompts, which dialogues have by turns.", min=1)]
SystemTokens = Annotated[int, _option(GENERATED, "Length of the system prompt that all share.", min=0)]
UserTokens = Annotated[int, _option(GENERATED, "Mean length of what a user says.", min=1)]
ToolTokens = Annotated[
    int,
    _option(GENERATED, "Mean length of a tool's result or a document that follows what a user says; 0: none.", min=0),
]
ToolShare = Annotated[float, _option(GENERATED, "Share of turns that have one.", min=0, max=1)]
Forks = Annotated[
    float, _option(GENERATED, "Share of dialogues that fork from the middle of an earlier one.", min=0, max=1)
]
Seed = Annotated[int, _option(GENERATED, "Another seed: other dialogues, arrival times and think times.")]

# Load
Clients = Annotated[
    int | None,
    _option(
        LOAD,
        "Closed loop: clients at the same time; each waits for its answers. [default: 4]",
        min=1,
        show_default=False,
    ),
]
Rate = Annotated[
    float | None, _option(LOAD, "Open loop: Poisson arrivals, so many a second, however slow the server is.", min=1e-6)
]
RateCounts = Annotated[RateOf, _option(LOAD, "What --rate counts.", "--rate-of")]
Arrivals = Annotated[
    Path | None,
    _option(
        LOAD,
        "Open loop: arrival times of a file, of each entry the `timestamp` in milliseconds; may be the --dialogues.",
        **_FILE,
    ),
]
TimeScale = Annotated[float, _option(LOAD, "How many times faster than in --arrivals time passes.", min=1e-6)]
MaxInFlight = Annotated[
    int | None,
    _option(LOAD, "Open loop: requests at the server at a time; others wait, and their wait counts.", min=1),
]
ThinkTime = Annotated[float, _option(LOAD, "Mean seconds from an answer to the user's next turn.", min=0)]
Think = Annotated[Thinking, _option(LOAD, "How think times are distributed.", "--think")]

# Comparison
Compare = Annotated[
    list[str] | None,
    _option(
        COMPARISON,
        "A server to compare, instead of stock and vtensor: NAME='arguments' or NAME='python -m sglang.launch_server "
        "...'. May be repeated; the first is what the others are compared with.",
        metavar="NAME=ARGUMENTS",
    ),
]
Url = Annotated[
    list[str] | None,
    _option(
        COMPARISON,
        "A server that runs already: NAME=http://HOST:PORT. Its cache is flushed between runs. May be repeated.",
        metavar="NAME=URL",
    ),
]
Repeats = Annotated[int, _option(COMPARISON, "Runs of each server, in alternating order.", min=1)]
Together = Annotated[
    bool,
    _option(
        COMPARISON, "Start all servers once, side by side, and let them run by turns; else one a run.", "--together"
    ),
]
WarmUp = Annotated[int, _option(COMPARISON, "Dialogues that a server plays unmeasured, and forgets, first.", min=0)]

# Limits
TtftLimit = Annotated[
    float | None, _option(SATURATION, "Time to the first token that users bear; also for the goodput.", min=1e-3)
]
ItlLimit = Annotated[
    float | None, _option(SATURATION, "Time from token to token that users bear; also for the goodput.", min=1e-3)
]
Saturate = Annotated[
    bool,
    _option(
        SATURATION,
        "Search the highest load that keeps the limits: of --rate, where it is given, else of --clients; from there.",
        "--saturate",
    ),
]
LimitPercentile = Annotated[float, _option(SATURATION, "Which percentile must keep its limit.", min=1, max=100)]
Tolerance = Annotated[
    float,
    _option(SATURATION, "End when the lowest failed load is at most so much above the highest passed.", min=0.001),
]
MaxProbes = Annotated[int, _option(SATURATION, "Bound of the runs of a search.", min=2)]
ProbeSeconds = Annotated[float, _option(SATURATION, "Open loop: seconds for which a probe's dialogues arrive.", min=0)]
ProbeRequests = Annotated[int, _option(SATURATION, "Requests that a probe has at least.", min=1)]

# Servers
ModelPath = Annotated[
    str | None,
    _option(SERVERS, "Folder or name of the model. Default: a toy Llama with random weights, made on first use."),
]
RunsOn = Annotated[Device, _option(SERVERS, "Where the servers run; auto: on a GPU if there is one.", "--device")]
ContextLength = Annotated[int, _option(SERVERS, "Tokens that a sequence may have.", min=1)]
MaxTotalTokens = Annotated[
    int | None,
    _option(SERVERS, "Tokens of the KV cache. Default: 32768 on a CPU, what memory allows on a GPU.", min=1),
]
ServerArgs = Annotated[str, _option(SERVERS, "Further arguments for all servers, in one string.")]
StockArgs = Annotated[str, _option(SERVERS, "For the stock server alone.")]
VtensorArgs = Annotated[str, _option(SERVERS, "For the server with virtual tensors alone.")]
Only = Annotated[Which | None, _option(SERVERS, "Run one server, compare nothing.")]
Timeout = Annotated[float, _option(SERVERS, "Seconds that a server's start, or one answer, may take.", min=1)]

# Output
Report = Annotated[Path, _option(OUTPUT, "JSON file of all results; logs go beside it.", dir_okay=False)]
SampleEvery = Annotated[
    float, _option(OUTPUT, "Seconds from a reading of the KV cache's memory to the next; 0: none.", min=0)
]
