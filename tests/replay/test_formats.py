# SPDX-License-Identifier: Apache-2.0
"""Reading traces: what each format means, and what is said of a broken line."""

import gzip
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vt_sglang.chat.encoding import ByteEncoding
from vt_sglang.replay import texts, trace
from vt_sglang.replay.form import Format
from vt_sglang.replay.request import Trace, TraceError

Write = Callable[..., Path]
DATE = "[2025-11-20 10:00:05] "


def read(path: Path, form: Format = Format.AUTO, **options: Any) -> Trace:
    return trace.read(path, texts.make(None), form, **options)


def prompts(found: Trace) -> list[list[int]]:
    return [it.tokens[: it.prompt].tolist() for it in found.requests]


def outputs(found: Trace) -> list[list[int]]:
    return [it.tokens[it.prompt :].tolist() for it in found.requests]


def block(*ids: int, length: int, output: int = 0, timestamp: Any = None) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": length, "output_length": output, "hash_ids": list(ids)}


# ---- Mooncake


def test_mooncake_blocks_are_tokens(write: Write) -> None:
    lines = [block(1, 2, length=1000, output=3, timestamp=2500), block(1, 3, length=600, output=2, timestamp=4000)]
    found = read(write(lines))
    assert found.format == "mooncake"
    assert [len(it) for it in prompts(found)] == [1000, 600]
    first, second = prompts(found)
    assert first[:512] == second[:512]
    assert first[512:600] != second[512:600]
    assert first[512] != second[512]
    assert [it.time_s for it in found.requests] == [0, 1.5]
    assert (found.prompt_tokens, found.output_tokens) == (1600, 5)
    produced = [token for it in outputs(found) for token in it]
    assert len(set(produced)) == 5
    assert not set(produced) & {*first, *second}


def test_mooncake_tokens_are_the_same_in_every_run(write: Write) -> None:
    path = write([block(7, length=512)])
    assert prompts(read(path)) == prompts(read(path))


def test_huge_block_ids(write: Write) -> None:
    path = write([block(2**200, 2**64 + 1, length=1024), block(2**200 + 1, length=5)])
    first, second = prompts(read(path))
    assert len(first) == 1024
    assert first[:5] != second


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (block(1, length=513), "1 hash_ids, but 513 input tokens are 2 blocks of 512"),
        (block(length=0), "input_length is 0: a prompt has at least one token"),
        (block(1, length=-3), "input_length is -3, not an integer from 0 on"),
        (block(-1, length=3), "a hash id is -1, not an integer from 0 on"),
        (block(1, length=3, output=-1), "output_length is -1, not an integer from 0 on"),
        (block(1, length=3, timestamp="now"), "timestamp is 'now', not a time"),
        (block(1, length=3, output=2 * 10**10), "a request of 20,000,000,000 output tokens; up to 10,000,000"),
        (block(1, length=True), "input_length is True, not an integer from 0 on"),
        ({"hash_ids": 3, "input_length": 3}, "hash_ids is not a list"),
        ({"hash_ids": [3]}, "no input_length"),
        ('{"hash_ids": [1], "input_length": 3', "Expecting ',' delimiter"),
        ("[1]", "not a JSON object"),
    ],
)
def test_broken_lines(write: Write, line: Any, reason: str) -> None:
    path = write([block(1, length=3), line, block(2, length=3)])
    with pytest.raises(TraceError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, line 2: {reason}")
    found = read(path, skip_bad=True)
    assert len(found.requests) == 2
    assert found.skipped == 1


def test_unsorted_times_are_sorted_and_equal_ones_keep_their_order(write: Write) -> None:
    lines = [{"input_ids": [n], "timestamp": t} for n, t in ((1, 5), (2, 3.5), (3, 5), (4, 3.5))]
    found = read(write(lines))
    assert prompts(found) == [[2], [4], [1], [3]]
    assert [it.time_s for it in found.requests] == [0, 0, 1.5, 1.5]
    assert found.timed


# ---- token ids


def test_token_ids(write: Write) -> None:
    lines = [
        {"input_ids": [1, 2], "output_ids": [3]},
        "",
        {"input_ids": [2**63 - 1], "output_ids": None, "extra_key": "salt"},
    ]
    found = read(write(lines))
    assert found.format == "tokens"
    assert prompts(found) == [[1, 2], [2**63 - 1]]
    assert outputs(found) == [[3], []]
    assert [it.namespace for it in found.requests] == [None, "salt"]
    assert [it.time_s for it in found.requests] == [0, 1]
    assert not found.timed
    assert outputs(read(write(lines), outputs=False)) == [[], []]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"input_ids": []}, "input_ids is empty: a prompt has at least one token"),
        ({"input_ids": "abc"}, "input_ids is not a list of token ids"),
        ({"input_ids": [1.5]}, "input_ids holds something that is not a token id"),
        ({"input_ids": ["1"]}, "input_ids holds something that is not a token id"),
        ({"input_ids": [2**63]}, "input_ids holds something that is not a token id (an integer below 2**63)"),
        ({"input_ids": [1, -2]}, "input_ids holds a negative token id, -2"),
        ({"input_ids": [1], "output_ids": [-2]}, "output_ids holds a negative token id, -2"),
        ({"input_ids": [1], "timestamp": 3}, "some requests have a time and others have none"),
        ({"input_ids": [1], "extra_key": 3}, "extra_key is 3, not a text"),
        ('{"input_ids": [1], "extra_key": "\\ud800"}', "extra_key holds half of a surrogate pair"),
        ({"prompt": "x"}, "no input_ids"),
        ('{"input_ids": [1], "timestamp": NaN}', "timestamp is nan, not a time"),
    ],
)
def test_broken_token_lines(write: Write, line: Any, reason: str) -> None:
    path = write([{"input_ids": [1]}, line])
    with pytest.raises(TraceError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, line 2: {reason}")


# ---- chat messages

CHAT = {
    "messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bc"},
        {"role": "user", "content": "d"},
    ]
}


def test_every_answer_is_a_request_with_the_history_as_its_prompt(write: Write) -> None:
    found = read(write([CHAT]))
    encoding = ByteEncoding()
    opening = encoding.opening("S", "a")
    assert found.format == "chat"
    assert prompts(found) == [opening, [*opening, *b"bc", *encoding.following("d")]]
    assert outputs(found) == [[*b"bc"], []]
    assert found.texts is not None
    assert found.texts.decode(opening) == "<system>S<end><user>a<end><assistant>"


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(CHAT).encode()))
    assert len(read(path).requests) == 2
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(TraceError, match=r"after line \d: "):
        read(path)


def test_broken_dialogue(write: Write) -> None:
    path = write([CHAT, {"messages": [{"role": "assistant", "content": "x"}]}])
    with pytest.raises(TraceError, match="line 2: a message of role 'assistant' stands where"):
        read(path)


# ---- SGLang's logs, by its own logger


def obj_of(**fields: Any) -> Any:
    from sglang.srt.managers.io_struct import GenerateReqInput

    return GenerateReqInput(sampling_params={"max_new_tokens": 3, "stop": ["input_ids=[9]"]}, **fields)


def log_lines(form: str, level: int, requests: list[tuple[Any, dict[str, Any] | None]]) -> list[str]:
    """What SGLang logs: first that all were received, then that some were finished."""
    pytest.importorskip("sglang")
    from sglang.srt.utils.request_logger import RequestLogger

    logger = RequestLogger(True, level, form, None)
    said: list[str] = []

    class Target:
        def info(self, message: str) -> None:
            said.append(f"{DATE}{message}")

    logger.targets = [Target()]  # type: ignore[list-item]
    for obj, _ in requests:
        logger.log_received_request(obj)
    for obj, out in requests:
        if out is not None:
            logger.log_finished_request(obj, out)
    return said


def out_of(ids: list[int], text: str = "", tokens: int | None = None) -> dict[str, Any]:
    meta = {"id": "x", "completion_tokens": len(ids) if tokens is None else tokens, "prompt_tokens": 1}
    return {"text": text, "output_ids": ids, "meta_info": meta}


NASTY = "it's \"quoted\", out={'text': 'no', 'output_ids': [9], 'meta_info': {} input_ids=[9] \n é"


@pytest.mark.parametrize("form", ["text", "json"])
def test_sglang_request_logs(write: Write, form: str) -> None:
    requests = [
        (obj_of(rid="a", input_ids=[1, 2, 3], extra_key="salt"), out_of([4, 5], NASTY)),
        (obj_of(rid="b", text=NASTY), out_of([6], NASTY)),
        (obj_of(rid="c", input_ids=[7, 8]), None),
        (obj_of(rid="d", input_ids=[7, 8]), out_of([9], tokens=3)),
        (obj_of(rid="HEALTH_CHECK_1", input_ids=[0]), out_of([1])),
    ]
    noise = [DATE + "INFO:     127.0.0.1:1 - POST /generate", "Prefill batch, #new-seq: 1"]
    found = read(write([*noise, *log_lines(form, 3, requests), *noise]))
    assert found.format == "sglang"
    assert found.timed
    by_prompt = sorted(zip(prompts(found), outputs(found), strict=True))
    assert [prompt for prompt, _ in by_prompt] == sorted([[1, 2, 3], [*NASTY.encode()], [7, 8], [7, 8]])
    produced = {tuple(prompt): output for prompt, output in by_prompt if prompt != [7, 8]}
    assert produced[1, 2, 3] == [4, 5]
    assert produced[tuple(NASTY.encode())] == [6]
    # One was never finished; of the other's three tokens only the last is known, so that all are unknown.
    short = sorted(len(output) for prompt, output in by_prompt if prompt == [7, 8])
    assert short == [0, 3]
    assert {it.namespace for it in found.requests} == {"salt", None}


@pytest.mark.parametrize("form", ["text", "json"])
def test_cut_or_absent_token_ids(write: Write, form: str) -> None:
    long = list(range(5000))
    cut = write(log_lines(form, 2, [(obj_of(rid="a", input_ids=long), out_of([1]))]))
    with pytest.raises(TraceError, match="line 1: input_ids is cut short: log with --log-requests-level 3"):
        read(cut)
    absent = write(log_lines(form, 1, [(obj_of(rid="a", input_ids=long), out_of([1]))]))
    with pytest.raises(TraceError, match="line 1: neither input_ids nor text: log with --log-requests-level 3"):
        read(absent)
    text = write(log_lines(form, 2, [(obj_of(rid="a", text="x" * 5000), out_of([1]))]))
    with pytest.raises(TraceError, match=r"line 1: (text|the output's text) is cut short"):
        read(text)


def test_exported_metrics(write: Write) -> None:
    line = {
        "request_parameters": json.dumps({"rid": "a", "input_ids": [1, 2]}),
        "completion_tokens": 4,
        "request_received_ts": 17.5,
    }
    found = read(write([line, line]))
    assert prompts(found) == [[1, 2], [1, 2]]
    assert [len(it) for it in outputs(found)] == [4, 4]


def test_broken_log_lines(write: Write) -> None:
    good = log_lines("text", 3, [(obj_of(rid="a", input_ids=[1]), out_of([2]))])
    for broken, reason in (
        (DATE + "Finish: obj=nothing", "not what SGLang 0.5.17 logs of a request"),
        (good[1][: good[1].index("out=")], "no output as SGLang 0.5.17 logs it"),
        ('{"event": "request.finished", "obj": 3}', "obj is not an object"),
        ('{"event": "request.finished", "timestamp": 7, "obj": {}}', "timestamp is 7, not a time"),
        ('{"what": 1}', "a JSON object with neither `event` nor `request_parameters`"),
    ):
        path = write([*good, broken])
        with pytest.raises(TraceError) as error:
            read(path)
        assert f"line 3: {reason}" in str(error.value)
        assert read(path, skip_bad=True).skipped == 1


# ---- any format


def test_an_empty_file(write: Write) -> None:
    with pytest.raises(TraceError, match="line 1: the file is empty"):
        read(write([]))
    with pytest.raises(TraceError, match="no request in the file, 1 broken lines"):
        read(write(["x"]), Format.TOKENS, skip_bad=True)


def test_no_known_format(write: Write) -> None:
    with pytest.raises(TraceError, match="line 1: an object with none of hash_ids"):
        read(write([{"prompt": "x"}]))
    with pytest.raises(TraceError, match="line 2: Expecting value"):
        read(write(["", "hello"]))


def test_the_format_is_found_behind_broken_lines(write: Write) -> None:
    path = write(["broken", {"input_ids": [1]}])
    with pytest.raises(TraceError, match="line 1: "):
        read(path)
    assert prompts(read(path, skip_bad=True)) == [[1]]


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump.pkl"
    path.write_bytes(pickle.dumps({"requests": []}))
    with pytest.raises(TraceError, match="a pickle"):
        read(path)


def test_garbage_never_crashes(tmp_path: Path) -> None:
    source = random.Random(0)
    path = tmp_path / "garbage"
    for form in Format:
        for _ in range(20):
            path.write_bytes(source.randbytes(200))
            with pytest.raises(TraceError):
                read(path, form, skip_bad=form is not Format.AUTO)
