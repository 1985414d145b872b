# SPDX-License-Identifier: Apache-2.0
"""What a cache is asked for each request, made ready ahead so that only the cache is measured.

Caches count in units. At grain 1 a unit is a token. At grain N it is a block of N tokens, known by its content: the
last one of a sequence may be partly filled, takes as much room as any other, and is found as a whole or not at all.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from vt_sglang.replay.request import Request


@dataclass(slots=True)
class Work:
    units: "array[int]"
    """Ids of all units that are recorded: those of the prompt, and of the output without its last token."""
    prompt: int
    """Units of the prompt."""
    limit: int
    """The most units that may be matched: a request's last token is always computed."""
    prompt_tokens: int
    time_s: float
    namespace: str | None


def prepare(requests: Sequence[Request], grain: int) -> list[Work]:
    """Work of each request, in the same order. The last token of an output is sampled, but its KV is never computed."""
    blocks: dict[bytes, int] = {}
    works = []
    for request in requests:
        recorded = (
            max(len(request.tokens) - 1, request.prompt) if request.prompt < len(request.tokens) else request.prompt
        )
        units = request.tokens if recorded == len(request.tokens) else request.tokens[:recorded]
        prompt, limit = request.prompt, request.prompt - 1
        if grain > 1:
            asked = _blocks(units[: request.prompt], grain, blocks)
            units = asked if recorded == request.prompt else _blocks(units, grain, blocks)
            prompt = len(asked)
            # Where the output goes on in the prompt's last block, that is another block than the one asked for.
            limit = prompt if units[prompt - 1] == asked[-1] else prompt - 1
        works.append(Work(units, prompt, limit, request.prompt, request.time_s or 0.0, request.namespace))
    return works


def cached_tokens(work: Work, matched: int, grain: int) -> int:
    """Tokens of the prompt that need not be computed, of so many units matched."""
    return min(matched * grain, work.prompt_tokens - 1)


def _blocks(tokens: "array[int]", grain: int, known: dict[bytes, int]) -> "array[int]":
    data = memoryview(tokens).cast("B")
    step = grain * tokens.itemsize
    digests = (blake2b(data[start : start + step], digest_size=16).digest() for start in range(0, len(data), step))
    return array("q", (known.setdefault(digest, len(known)) for digest in digests))
