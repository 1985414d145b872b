# SPDX-License-Identifier: Apache-2.0
"""Dialogues as text, and reading them from a file of chat messages."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"


class DialogueError(ValueError):
    """A file of dialogues that cannot be used; the message names file, line and reason."""


@dataclass(frozen=True)
class Exchange:
    """What the user says, and the answer that a file gives; None where there is none."""

    user: str
    assistant: str | None = None


@dataclass(frozen=True)
class Fork:
    """A dialogue that begins as an earlier one does and then goes its own way."""

    parent: int
    """Index of the earlier dialogue."""
    exchanges: int
    """How many exchanges the two share; at least one."""


@dataclass(frozen=True)
class Dialogue:
    system: str | None
    exchanges: tuple[Exchange, ...]
    """All of them, the shared ones of a fork included."""
    fork: Fork | None = None


def read(path: Path, limit: int | None = None) -> list[Dialogue]:
    """Read JSON Lines, gzipped or not: an object a line, whose `messages` are a list of {role, content}.

    An optional system message comes first, then user and assistant take turns; the last answer may be absent. Blank
    lines are passed over.

    Args:
        limit: read no more than the first so many dialogues.

    Raises:
        DialogueError: the file cannot be read, has no line, or has one that is something else.
    """
    dialogues = []
    try:
        for number, line in islice(((n, it) for n, it in enumerate(_lines(path), start=1) if it.strip()), limit):
            try:
                dialogues.append(parse_line(line))
            except (ValueError, RecursionError) as error:
                raise DialogueError(f"{path}, line {number}: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DialogueError(f"{path}, after line {len(dialogues)}: {error}") from None
    if not dialogues:
        raise DialogueError(f"{path}, line 1: the file is empty")
    return dialogues


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        yield from gzip.GzipFile(fileobj=file) if packed else file


def parse_line(line: bytes) -> Dialogue:
    """ValueError, saying why, if the line is no dialogue."""
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise ValueError("not an object with a list `messages`")
    said = [_message(index, message) for index, message in enumerate(record["messages"])]
    system = said.pop(0)[1] if said and said[0][0] == "system" else None
    for index, (role, _) in enumerate(said):
        if role != (expected := ("user", "assistant")[index % 2]):
            raise ValueError(f"a message of role {role!r} stands where one of role {expected!r} should")
    if not said:
        raise ValueError("no message of role 'user'")
    texts = [text for _, text in said]
    answers: list[str | None] = [*texts[1::2]]
    answers += [None] * (len(texts) % 2)
    return Dialogue(system, tuple(map(Exchange, texts[::2], answers)))


def _message(index: int, message: Any) -> tuple[str, str]:
    match message:
        case {"role": str(role), "content": str(content)}:
            content.encode()  # UnicodeEncodeError, a ValueError, for half of a surrogate pair
            return role, content
    raise ValueError(f"messages[{index}] is not an object with texts `role` and `content`")
