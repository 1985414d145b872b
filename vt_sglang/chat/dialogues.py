# SPDX-License-Identifier: Apache-2.0
"""Dialogues as text, and reading them from files of chat messages or of ShareGPT's conversations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_sglang.chat.entries import DialogueError, entries

__all__ = ["Dialogue", "DialogueError", "Exchange", "Fork", "parse", "read"]

# Of each format: the list's name, those of a message's role and text, and its roles by their names in chat templates.
FORMATS: tuple[tuple[str, tuple[str, str], Mapping[str, str]], ...] = (
    ("messages", ("role", "content"), {}),
    ("conversations", ("from", "value"), {"human": "user", "gpt": "assistant"}),
)


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


def read(path: Path, limit: int | None = None, on_bad: Callable[[DialogueError], None] | None = None) -> list[Dialogue]:
    """Read JSON Lines or a JSON array, gzipped or not, of objects in one of two formats, told apart entry by entry:

        {"messages": [{"role": "system" | "user" | "assistant", "content": ...}, ...]}
        {"conversations": [{"from": "system" | "human" | "gpt", "value": ...}, ...]}    as ShareGPT has them

    An optional system message comes first, then user and assistant take turns; the last answer may be absent. Blank
    lines are passed over.

    Args:
        limit: read no more than the first so many dialogues.
        on_bad: called for every entry that is JSON and no dialogue, which then is left out; None: it is an error.

    Raises:
        DialogueError: the file cannot be read, has no dialogue, or has an entry that is something else.
    """
    dialogues: list[Dialogue] = []
    for entry in entries(path):
        try:
            dialogues.append(parse(entry.value))
        except ValueError as error:
            bad = DialogueError(f"{entry.place}: {error}")
            if on_bad is None:
                raise bad from None
            on_bad(bad)
        if len(dialogues) == limit:
            break
    if not dialogues:
        raise DialogueError(f"{path}, line 1: the file is empty" if on_bad is None else f"{path}: no dialogue in it")
    return dialogues


def parse(record: Any) -> Dialogue:
    """ValueError, saying why, if the value is no dialogue."""
    if not isinstance(record, dict):
        record = {}
    for key, fields, roles in FORMATS:
        if isinstance(messages := record.get(key), list):
            said = [_message(f"{key}[{index}]", it, fields, roles) for index, it in enumerate(messages)]
            return _dialogue(said)
    raise ValueError("not an object with a list `messages` or `conversations`")


def _dialogue(said: list[tuple[str, str]]) -> Dialogue:
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


def _message(place: str, message: Any, fields: tuple[str, str], roles: Mapping[str, str]) -> tuple[str, str]:
    """Role, by the name that chat templates have for it, and text."""
    role, text = (message.get(field) for field in fields) if isinstance(message, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(text, str):
        raise ValueError(f"{place} is not an object with texts `{fields[0]}` and `{fields[1]}`")
    text.encode()  # UnicodeEncodeError, a ValueError, for half of a surrogate pair
    return roles.get(role, role), text
