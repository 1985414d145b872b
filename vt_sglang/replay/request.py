# SPDX-License-Identifier: Apache-2.0
"""What a trace consists of, whichever format it was read from."""

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vt_sglang.replay.texts import Texts


class TraceError(ValueError):
    """A trace that cannot be used; the message names file, line and reason."""


@dataclass(slots=True)
class Request:
    tokens: "array[int]"
    """Ids of the prompt and of the output, int64."""
    prompt: int
    """How many of them are the prompt's; at least one."""
    time_s: float | None = None
    """When it arrived, from any origin; None where the trace does not say."""
    namespace: str | None = None
    """Requests of different namespaces share nothing (SGLang's `extra_key` and LoRA adapter)."""


@dataclass
class Trace:
    path: Path
    format: str
    requests: list[Request]
    """In order of arrival; the times of all are set, and begin with 0."""
    skipped: int
    """Broken lines that were passed over."""
    timed: bool
    """False: the trace has no times, and requests count as one a second."""
    texts: Texts | None = None
    """Turns ids into text, where the trace holds text."""
    prompt_tokens: int = field(init=False)
    output_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = sum(request.prompt for request in self.requests)
        self.output_tokens = sum(len(request.tokens) - request.prompt for request in self.requests)


class Reader(Protocol):
    """Reads one format, line by line."""

    texts: Texts | None

    def read(self, line: bytes) -> Iterable[Request]:
        """The requests that a line completes. ValueError, saying why, if the line is broken."""

    def rest(self) -> Iterable[Request]:
        """The requests that no line completed, after the last line."""


MOST_TOKENS = 10**7
"""That a trace may count of one output without naming them: a broken line must not take all memory."""


class UnknownTokens:
    """Ids for tokens that a trace counts but does not name: no two are the same, and none is like one with a name."""

    def __init__(self) -> None:
        self._next = -1

    def take(self, count: int) -> "array[int]":
        """ValueError for more than a request can have."""
        if count > MOST_TOKENS:
            raise ValueError(f"a request of {count:,} output tokens; up to {MOST_TOKENS:,} are read")
        ids = array("q", range(self._next, self._next - count, -1))
        self._next -= count
        return ids


def load_object(line: bytes | str) -> dict[str, Any]:
    """A line's JSON object. ValueError if it is none."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def token_ids(name: str, value: Any) -> "array[int]":
    """Ids of a JSON list. ValueError, naming the field, if it is no list of non-negative int64."""
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list of token ids")
    if "..." in value:
        raise ValueError(f"{name} is cut short: log with --log-requests-level 3")
    try:
        ids = array("q", value)
    except (TypeError, OverflowError):
        raise ValueError(f"{name} holds something that is not a token id (an integer below 2**63)") from None
    if ids and min(ids) < 0:
        raise ValueError(f"{name} holds a negative token id, {min(ids)}")
    return ids


def prompt_ids(name: str, value: Any) -> "array[int]":
    """The same, of a prompt, which has at least one."""
    if not (ids := token_ids(name, value)):
        raise ValueError(f"{name} is empty: a prompt has at least one token")
    return ids


def non_negative(name: str, value: Any) -> int:
    """ValueError, naming the field, if the value is no integer from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}, not an integer from 0 on")
    return value


def namespace_of(name: str, value: Any) -> str | None:
    """A text or None. ValueError, naming the field, if it is neither, or half of a surrogate pair stands in it."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half of a surrogate pair") from None
    return value


def time_of(name: str, value: Any) -> float | None:
    """A time in the unit of the field, None where there is none. ValueError, naming the field, if it is no number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        raise ValueError(f"{name} is {value!r}, not a time")
    return float(value)
