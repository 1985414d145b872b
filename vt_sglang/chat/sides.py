# SPDX-License-Identifier: Apache-2.0
"""Servers by name, as options give them: `NAME=LAUNCH ARGUMENTS` or `NAME=http://...`."""

import re
import shlex
from collections.abc import Sequence
from urllib.parse import urlsplit

from vt_sglang.chat.settings import Side

_NAME = re.compile(r"[\w.+-]+")  # also names a log file


def split_side(option: str, text: str) -> tuple[str, list[str]]:
    """Name and words. ValueError, naming the option: it is something else."""
    name, found, arguments = text.partition("=")
    if not found or not _NAME.fullmatch(name):
        raise ValueError(f"{option}: {text!r} is not NAME=ARGUMENTS")
    return name, split_words(option, arguments)


def split_words(option: str, text: str) -> list[str]:
    """The words of a shell's command line. ValueError, naming the option: a quotation is open."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}: {text}") from None


def parse(launches: Sequence[str], urls: Sequence[str]) -> tuple[Side, ...]:
    """The sides of a comparison, those that are to be started first. ValueError: they make no sense."""
    sides = [Side(name, tuple(words)) for name, words in (split_side("--compare", text) for text in launches)]
    for text in urls:
        name, _, url = text.partition("=")
        parts = urlsplit(url)
        if not _NAME.fullmatch(name) or parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"--url: {text!r} is not NAME=http://HOST:PORT")
        sides.append(Side(name, url=f"{parts.scheme}://{parts.netloc}"))
    names = [side.name for side in sides]
    if len(set(names)) < len(names):
        raise ValueError("--compare, --url: the same name twice")
    return tuple(sides)
