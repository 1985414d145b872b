# SPDX-License-Identifier: Apache-2.0
"""Mooncake's traces: a JSON object a line with `timestamp` (ms), `input_length`, `output_length`, and `hash_ids`.

An id stands for 512 tokens of the prompt, the last for what is left; equal ids mean equal tokens, from the start of the
prompt to there. What the tokens are is not known, nor what was answered.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from vt_sglang.replay.request import Request, UnknownTokens, load_object, non_negative, time_of
from vt_sglang.replay.texts import Texts

BLOCK_TOKENS = 512
# Ids out of a vocabulary would let two blocks begin alike by chance, and a tree would find that.
_TOKEN_IDS = 2**62


class MooncakeReader:
    texts: Texts | None = None

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}
        self._unknown = UnknownTokens()

    def read(self, line: bytes) -> Iterable[Request]:
        record = load_object(line)
        missing = {"hash_ids", "input_length"} - record.keys()
        if missing:
            raise ValueError(f"no {' and no '.join(sorted(missing))}")
        length = non_negative("input_length", record["input_length"])
        outputs = non_negative("output_length", record.get("output_length", 0))
        time_ms = time_of("timestamp", record.get("timestamp"))
        ids = record["hash_ids"]
        if not isinstance(ids, list):
            raise ValueError("hash_ids is not a list")
        blocks = -(-length // BLOCK_TOKENS)
        if len(ids) != blocks:
            raise ValueError(f"{len(ids)} hash_ids, but {length} input tokens are {blocks} blocks of {BLOCK_TOKENS}")
        if length == 0:
            raise ValueError("input_length is 0: a prompt has at least one token")
        tokens = array("q", b"".join([self._block(non_negative("a hash id", block)) for block in ids]))
        del tokens[length:]
        tokens += self._unknown.take(outputs)
        yield Request(tokens, length, None if time_ms is None else time_ms / 1000)

    def rest(self) -> Iterable[Request]:
        return ()

    def _block(self, block: int) -> bytes:
        """Tokens that the id alone decides."""
        if (found := self._blocks.get(block)) is None:
            found = np.random.default_rng(block).integers(0, _TOKEN_IDS, BLOCK_TOKENS, dtype=np.int64).tobytes()
            self._blocks[block] = found
        return found
