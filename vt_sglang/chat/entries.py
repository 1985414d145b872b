# SPDX-License-Identifier: Apache-2.0
"""The entries of a data file: JSON Lines or one JSON array, gzipped or not, told apart by what the file holds."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

GZIP_MAGIC = b"\x1f\x8b"
_SPACE = re.compile(r"\s*")


class DialogueError(ValueError):
    """A file of dialogues that cannot be used; the message names file, line or entry, and reason."""


@dataclass(frozen=True)
class Entry:
    place: str
    """File and line, or number in the array, counted from 1."""
    value: Any


def entries(path: Path) -> Iterator[Entry]:
    """One value after the other; blank lines are passed over.

    Raises:
        DialogueError: the file cannot be read, or what stands next is no JSON.
    """
    done = 0
    try:
        with path.open("rb") as file:
            packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            lines: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=file) if packed else file
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                if not done and line.lstrip().startswith(b"[") and _opens_an_array(line):
                    yield from _array(path, line + lines.read(), number)
                    return
                place = f"{path}, line {number}"
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DialogueError(f"{place}: {error}") from None
                yield Entry(place, value)
                done += 1
    except (OSError, EOFError, zlib.error) as error:
        raise DialogueError(f"{path}, after line {done}: {error}") from None


def _opens_an_array(line: bytes) -> bool:
    """Whether the line is an array with something in it, or the beginning of one."""
    try:
        return bool(json.loads(line))
    except (ValueError, RecursionError):
        return True


def _array(path: Path, content: bytes, first_line: int) -> Iterator[Entry]:
    """Entries of a JSON array, parsed one by one: of a large file, often only the first ones are wanted."""
    decoder = json.JSONDecoder()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DialogueError(f"{path}: {error}") from None

    def after_space(position: int) -> int:
        found = _SPACE.match(text, position)
        assert found is not None
        return found.end()

    position = after_space(0) + 1
    number = 1
    while True:
        position = after_space(position)
        place = f"{path}, entry {number}"
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            line = first_line + text.count("\n", 0, position)
            raise DialogueError(f"{place} (line {line}): {reason}") from None
        yield Entry(place, value)
        number += 1
        position = after_space(position)
        if text[position : position + 1] == "]":
            return
        if text[position : position + 1] != ",":
            line = first_line + text.count("\n", 0, position)
            raise DialogueError(f"{place} (line {line}): neither `,` nor `]` follows it")
        position += 1
