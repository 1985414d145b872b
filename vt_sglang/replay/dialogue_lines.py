# SPDX-License-Identifier: Apache-2.0
"""Chat messages, a dialogue a line, as `vt-sglang chat --dialogues` reads them: a request for every answer, whose
prompt is all before it.

A dialogue may have a `timestamp` (s), at which all its requests arrive, one after the other.
"""

from array import array
from collections.abc import Iterable

from vt_sglang.chat import dialogues
from vt_sglang.replay.request import Request, load_object, time_of
from vt_sglang.replay.texts import Texts


class DialogueReader:
    def __init__(self, texts: Texts) -> None:
        self.texts: Texts | None = texts
        self._encoding = texts.encoding

    def read(self, line: bytes) -> Iterable[Request]:
        record = load_object(line)
        dialogue = dialogues.parse(record)
        time_s = time_of("timestamp", record.get("timestamp"))
        ids = array("q")
        for turn, exchange in enumerate(dialogue.exchanges):
            encoding = self._encoding
            ids += array("q", encoding.following(exchange.user) if turn else self._opening(dialogue.system, exchange))
            prompt = len(ids)
            ids += array("q", encoding.text(exchange.assistant or ""))
            yield Request(ids[:], prompt, time_s)

    def rest(self) -> Iterable[Request]:
        return ()

    def _opening(self, system: str | None, exchange: dialogues.Exchange) -> list[int]:
        return self._encoding.opening(system, exchange.user)
