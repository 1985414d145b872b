# SPDX-License-Identifier: Apache-2.0
"""SGLang's request log in its text format, which is that of Python's `repr`:

    Receive: obj=GenerateReqInput(rid='a', session_id=None, text=None, input_ids=[1, 2], ...)
    Finish: obj=GenerateReqInput(...), out={'text': 'b', 'output_ids': [3], 'meta_info': {'completion_tokens': 1, ...}}

Only what a replay needs is looked at. A text may hold anything, so that each field is matched from where the one before
it ends.
"""

import ast
import re
from typing import Any

_STRING = r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
_IDS = r"\[[-\d, ]*\]"
_CUT = r"(?: \.\.\. (?:\[[-\d, ]*\]|" + _STRING + "))"
_LIST = r"\[(?:" + _STRING + r"|[^'\"\]])*\]"

_HEAD = re.compile(
    rf"(?P<event>Receive|Finish): obj=\w+\(rid=(?P<rid>{_STRING}|{_LIST}|None)"
    rf"(?:, session_id=(?:{_STRING}|None))?"
    rf"(?:, text=(?P<text>{_STRING}{_CUT}?|{_LIST}|None))?"
    rf"(?:, input_ids=(?P<input_ids>{_IDS}{_CUT}?|\[\[.*?\]\]|None))?"
)
_KEY = re.compile(rf", (?P<name>extra_key|lora_path)=(?P<value>{_STRING})")
_OUT = re.compile(
    rf", out={{(?:'text': (?P<text>{_STRING}{_CUT}?|None), )?"
    rf"(?:'output_ids': (?P<output_ids>{_IDS}{_CUT}?), )?'meta_info': {{"
)
_COMPLETION_TOKENS = re.compile(r"'completion_tokens': (\d+)")
_EVENTS = {"Receive": "request.received", "Finish": "request.finished"}


def parse_text(line: str) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """(event, fields of the request, fields of the output or None), as the JSON format has them.

    Raises:
        ValueError: the line is broken.
    """
    head = _HEAD.match(line)
    if head is None:
        raise ValueError("not what SGLang 0.5.17 logs of a request")
    obj = {name: _value(name, head[name]) for name in ("rid", "text", "input_ids")}
    out = _last(_OUT, line, head.end()) if head["event"] == "Finish" else None
    if head["event"] == "Finish" and out is None:
        raise ValueError("no output as SGLang 0.5.17 logs it")
    for key in _KEY.finditer(line, head.end(), len(line) if out is None else out.start()):
        obj[key["name"]] = _value(key["name"], key["value"])
    if out is None:
        return _EVENTS[head["event"]], obj, None
    output = {name: _value(name, out[name]) for name in ("text", "output_ids") if out[name] is not None}
    tokens = _COMPLETION_TOKENS.search(line, out.end())
    return _EVENTS[head["event"]], obj, output | {"meta_info": {"completion_tokens": int(tokens[1]) if tokens else 0}}


def _last(pattern: re.Pattern[str], line: str, start: int) -> re.Match[str] | None:
    return max(pattern.finditer(line, start), key=re.Match.start, default=None)


def _value(name: str, text: str | None) -> Any:
    if text is None:
        return None
    if name.endswith("_ids"):
        if " ... " in text:
            return ["..."]
        if text.startswith("[[") or text == "None":
            return None
        try:
            return [int(token) for token in text[1:-1].split(",")] if text != "[]" else []
        except ValueError:
            raise ValueError(f"{name} holds something that is not a token id") from None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"{name} is cut short: log with --log-requests-level 3") from None
