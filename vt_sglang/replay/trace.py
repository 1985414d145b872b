# SPDX-License-Identifier: Apache-2.0
"""Reading a trace: which format it is in, its lines, and the order in which its requests arrived."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

from vt_sglang.replay.dialogue_lines import DialogueReader
from vt_sglang.replay.form import Format
from vt_sglang.replay.mooncake import MooncakeReader
from vt_sglang.replay.request import Reader, Request, Trace, TraceError, load_object
from vt_sglang.replay.server_log import PREFIX, TEXT_LINES, ServerLogReader
from vt_sglang.replay.texts import Texts
from vt_sglang.replay.token_lines import TokenReader

GZIP_MAGIC = b"\x1f\x8b"
PICKLE_MAGIC = b"\x80"


def read(
    path: Path,
    texts: Texts,
    form: Format = Format.AUTO,
    *,
    skip_bad: bool = False,
    outputs: bool = True,
    on_line: Callable[[int], None] = lambda _: None,
) -> Trace:
    """Read a trace, gzipped or not.

    Args:
        texts: how text becomes token ids, in formats that hold text.
        skip_bad: pass broken lines over, and count them.
        outputs: keep the output's tokens too.
        on_line: called with the length in bytes of each line read.

    Raises:
        TraceError: the file cannot be read, holds a broken line, or no request.
    """
    if form is Format.AUTO:
        form = _detect(path)
    reader = _reader(form, texts)
    requests: list[Request] = []
    skipped = 0
    for number, line in _lines(path):
        on_line(len(line))
        if not line.strip():
            continue
        try:
            found = list(reader.read(line))
            if found and requests and (found[0].time_s is None) != (requests[0].time_s is None):
                raise ValueError("some requests have a time and others have none")
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are
            if not skip_bad:
                raise TraceError(f"{path}, line {number}: {error}") from None
            skipped += 1
            continue
        requests += found
    requests += reader.rest()
    if not requests:
        raise TraceError(f"{path}, line 1: no request in the file" + (f", {skipped} broken lines" if skipped else ""))
    if not outputs:
        for request in requests:
            del request.tokens[request.prompt :]
    timed = all(request.time_s is not None for request in requests)
    _order(requests, timed)
    return Trace(path, str(form), requests, skipped, timed, reader.texts)


def _order(requests: list[Request], timed: bool) -> None:
    """Sort by arrival; at equal times the order of the lines stays."""
    if not timed:
        for index, request in enumerate(requests):
            request.time_s = float(index)
        return
    requests.sort(key=attrgetter("time_s"))
    first = requests[0].time_s or 0.0
    for request in requests:
        request.time_s = (request.time_s or 0.0) - first


def _reader(form: Format, texts: Texts) -> Reader:
    match form:
        case Format.MOONCAKE:
            return MooncakeReader()
        case Format.CHAT:
            return DialogueReader(texts)
        case Format.TOKENS:
            return TokenReader()
        case _:
            return ServerLogReader(texts)


def _detect(path: Path) -> Format:
    first = ""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            return _format_of(line)
        except ValueError as error:
            first = first or f"{path}, line {number}: {error}"
    raise TraceError(first or f"{path}, line 1: the file is empty")


def _format_of(line: bytes) -> Format:
    """ValueError if the line is of no format."""
    prefix = PREFIX.match(line)
    said = line[prefix.end() :] if prefix else line
    if said.startswith(TEXT_LINES):
        return Format.SGLANG
    keys = load_object(said).keys()
    if {"event", "request_parameters"} & keys:
        return Format.SGLANG
    for key, form in (
        ("hash_ids", Format.MOONCAKE),
        ("messages", Format.CHAT),
        ("conversations", Format.CHAT),
        ("input_ids", Format.TOKENS),
    ):
        if key in keys:
            return form
    raise ValueError(
        "an object with none of hash_ids (Mooncake), messages or conversations (chat), input_ids (tokens) and "
        "event (SGLang)"
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with path.open("rb") as file:
            magic = file.read(2)
            file.seek(0)
            if magic.startswith(PICKLE_MAGIC):
                raise TraceError(
                    f"{path}, line 1: a pickle, as SGLang dumps requests; reading one could run any code. "
                    "Log with --log-requests --log-requests-level 3 instead"
                )
            for number, line in enumerate(gzip.GzipFile(fileobj=file) if magic == GZIP_MAGIC else file, start=1):
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path}, after line {number}: {error}") from None
