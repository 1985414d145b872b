# SPDX-License-Identifier: Apache-2.0
"""Token ids: a JSON object a line with `input_ids`, and where known `output_ids`, `timestamp` (s) and `extra_key`."""

from collections.abc import Iterable

from vt_sglang.replay.request import Request, load_object, namespace_of, prompt_ids, time_of, token_ids
from vt_sglang.replay.texts import Texts


class TokenReader:
    texts: Texts | None = None

    def read(self, line: bytes) -> Iterable[Request]:
        record = load_object(line)
        if "input_ids" not in record:
            raise ValueError("no input_ids")
        ids = prompt_ids("input_ids", record["input_ids"])
        prompt = len(ids)
        outputs = record.get("output_ids")
        ids += token_ids("output_ids", [] if outputs is None else outputs)
        key = namespace_of("extra_key", record.get("extra_key"))
        yield Request(ids, prompt, time_of("timestamp", record.get("timestamp")), key)

    def rest(self) -> Iterable[Request]:
        return ()
