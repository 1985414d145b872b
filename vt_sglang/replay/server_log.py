# SPDX-License-Identifier: Apache-2.0
"""SGLang's own logs of requests: `--log-requests --log-requests-level 3`, text or JSON, and `--export-metrics-to-file`.

A request is logged when it is received and when it is finished: its place is that of the first line, its output stands
in the second. What else a server prints is passed over. Exported metrics have a line a request, without its output.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from vt_sglang.replay.logged_text import parse_text
from vt_sglang.replay.request import (
    Request,
    UnknownTokens,
    load_object,
    namespace_of,
    prompt_ids,
    time_of,
    token_ids,
)
from vt_sglang.replay.texts import Texts

PREFIX = re.compile(rb"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)[^\]]*\] ")
TEXT_LINES = (b"Receive: obj=", b"Finish: obj=")
HEALTH_CHECK = "HEALTH_CHECK"
_HALF = 1024  # characters that level 2 keeps at either end of a long text


class ServerLogReader:
    def __init__(self, texts: Texts) -> None:
        self.texts: Texts | None = texts
        self._unknown = UnknownTokens()
        self._received: dict[str, tuple[float | None, Request | None]] = {}

    def read(self, line: bytes) -> Iterable[Request]:
        prefix = PREFIX.match(line)
        said = line[prefix.end() :] if prefix else line
        if said.startswith(TEXT_LINES):
            time_s = _seconds(prefix[1].decode()) if prefix else None
            yield from self._event(*parse_text(said.decode()), time_s)
        elif said.lstrip().startswith(b"{"):
            record = load_object(said)
            if "request_parameters" in record:
                yield from self._exported(record)
            elif isinstance(event := record.get("event"), str):
                if event in ("request.received", "request.finished"):
                    time_s = _seconds(record.get("timestamp"))
                    yield from self._event(event, _object("obj", record.get("obj")), record.get("out"), time_s)
            else:
                raise ValueError("a JSON object with neither `event` nor `request_parameters`")

    def rest(self) -> Iterable[Request]:
        """Those that were received and not finished: their prompts."""
        for _, request in self._received.values():
            if request is not None:
                yield request

    def _event(self, event: str, obj: dict[str, Any], out: Any, time_s: float | None) -> Iterator[Request]:
        rid = obj.get("rid")
        if isinstance(rid, list):
            # A batch: each of its requests has a line of its own when it is finished.
            for one in rid:
                self._received[str(one)] = (time_s, None)
            return
        rid = str(rid)
        if rid.startswith(HEALTH_CHECK):
            return
        if event == "request.received":
            self._received[rid] = (time_s, self._request(obj, time_s))
            return
        request = self._request(obj, time_s)
        request.tokens += self._output(_object("out", out))
        arrived, _ = self._received.pop(rid, (time_s, None))
        request.time_s = arrived
        yield request

    def _exported(self, record: dict[str, Any]) -> Iterator[Request]:
        parameters = record["request_parameters"]
        if not isinstance(parameters, str):
            raise ValueError("request_parameters is not a text")
        request = self._request(
            load_object(parameters), time_of("request_received_ts", record.get("request_received_ts"))
        )
        request.tokens += self._unknown.take(_completion_tokens(record))
        yield request

    def _request(self, obj: dict[str, Any], time_s: float | None) -> Request:
        ids, text = obj.get("input_ids"), obj.get("text")
        if ids is not None:
            prompt = prompt_ids("input_ids", ids)
        elif isinstance(text, str):
            prompt = self._encode("text", text)
        else:
            raise ValueError("neither input_ids nor text: log with --log-requests-level 3")
        if not prompt:
            raise ValueError("an empty prompt")
        key = "|".join(str(obj[name]) for name in ("extra_key", "lora_path") if obj.get(name) is not None)
        return Request(prompt, len(prompt), time_s, namespace_of("extra_key or lora_path", key or None))

    def _output(self, out: dict[str, Any]) -> "array[int]":
        tokens = _completion_tokens(out.get("meta_info"))
        ids = token_ids("output_ids", out["output_ids"]) if "output_ids" in out else None
        if ids is not None and len(ids) >= tokens:
            return ids
        if tokens == 0 and isinstance(out.get("text"), str):
            return self._encode("the output's text", out["text"])
        # A streamed answer may have only its last part here.
        return self._unknown.take(tokens)

    def _encode(self, name: str, text: str) -> "array[int]":
        assert self.texts is not None
        if len(text) == 2 * _HALF + 3 and text[_HALF:-_HALF] == "...":
            raise ValueError(f"{name} is cut short: log with --log-requests-level 3")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}: {error}") from None
        return array("q", self.texts.encoding.text(text))


def _completion_tokens(meta_info: Any) -> int:
    tokens = meta_info.get("completion_tokens") if isinstance(meta_info, dict) else None
    return tokens if isinstance(tokens, int) and tokens > 0 else 0


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _seconds(text: Any) -> float | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        raise ValueError(f"timestamp is {text!r}, not a time") from None
