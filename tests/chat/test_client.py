# SPDX-License-Identifier: Apache-2.0
import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from vt_sglang.chat.client import Answer, Client, RequestError, ServerLostError

DONE = b"data: [DONE]\n\n"
PAUSE_S = 0.02


def event(output_ids: list[int], completed: int, finish: object = None, **meta: Any) -> bytes:
    info = {"prompt_tokens": 9, "cached_tokens": 5, "completion_tokens": completed, "finish_reason": finish} | meta
    return f"data: {json.dumps({'output_ids': output_ids, 'meta_info': info})}\n\n".encode()


LENGTH = {"type": "length", "length": 3}
CUMULATIVE = [event([7], 1), event([7, 8], 2), event([7, 8, 9], 3, LENGTH), DONE]
INCREMENTAL = [event([7], 1), event([8], 2), event([9], 3, LENGTH), DONE]
TOGETHER = [event([7], 1), event([7, 8, 9], 3), event([7, 8, 9], 3, LENGTH), DONE]


def ask(chunks: Sequence[bytes], *, status: int = 200, timeout_s: float = 30, hang: bool = False) -> tuple[Answer, Any]:
    """Let a server answer with these chunks, one every PAUSE_S seconds. Returns the answer and what was asked."""
    asked = []

    async def generate(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for chunk in chunks:
            await asyncio.sleep(PAUSE_S)
            await response.write(chunk)
        if hang:
            await asyncio.sleep(60)
        return response

    async def main() -> Answer:
        app = web.Application()
        app.add_routes([web.post("/generate", generate)])
        async with TestServer(app) as server, Client(str(server.make_url("/")), timeout_s) as client:
            return await client.generate([1, 2, 3], 3)

    return asyncio.run(main()), asked[0]


@pytest.mark.parametrize("chunks", [CUMULATIVE, INCREMENTAL, TOGETHER])
def test_answer(chunks: list[bytes]) -> None:
    answer, asked = ask(chunks)
    assert answer.output_ids == [7, 8, 9]
    assert (answer.prompt_tokens, answer.cached_tokens) == (9, 5)
    assert asked["input_ids"] == [1, 2, 3]
    assert asked["stream"] is True
    assert asked["sampling_params"] == {"temperature": 0, "max_new_tokens": 3, "ignore_eos": True}


def test_times() -> None:
    answer, _ = ask(CUMULATIVE)
    pause_ms = PAUSE_S * 1e3
    assert answer.ttft_ms > pause_ms * 0.9
    assert len(answer.inter_token_ms) == 2
    assert min(answer.inter_token_ms) > pause_ms * 0.5
    assert answer.latency_ms == pytest.approx(answer.ttft_ms + sum(answer.inter_token_ms))


def test_tokens_that_come_together_share_their_time() -> None:
    answer, _ = ask(TOGETHER)
    assert len(answer.inter_token_ms) == 2
    assert answer.inter_token_ms[0] == answer.inter_token_ms[1]
    assert answer.latency_ms == pytest.approx(answer.ttft_ms + sum(answer.inter_token_ms))


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([event([7], 1), b'data: {"error": {"message": "too long"}}\n\n', DONE], "too long"),
        ([event([7], 1, {"type": "abort", "message": "out of memory"}), DONE], "out of memory"),
        ([event([7, 8], 2, {"type": "length"}), DONE], "2 tokens of 3"),
        ([event([7], 1), event([7, 8], 2)], "the stream ended after 2 tokens"),
        ([DONE], "the stream ended after 0 tokens"),
        ([b"data: {}\n\n"], "not an answer of /generate: KeyError"),
        ([b"data: nonsense\n\n"], "not an answer of /generate: JSONDecodeError"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(chunks: list[bytes], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        ask(chunks)
    assert not isinstance(caught.value, ServerLostError)


def test_refused_request() -> None:
    with pytest.raises(RequestError, match="HTTP status 400: the reason") as caught:
        ask([b"the reason"], status=400)
    assert not isinstance(caught.value, ServerLostError)


def test_server_that_does_not_go_on_is_lost() -> None:
    with pytest.raises(ServerLostError, match=r"no answer within 0\.2 s"):
        ask([event([7], 1)], timeout_s=0.2, hang=True)


def test_server_that_is_not_there_is_lost() -> None:
    async def main() -> None:
        async with Client("http://127.0.0.1:9", 5) as client:  # the port for what is thrown away
            await client.generate([1], 1)

    with pytest.raises(ServerLostError, match="Connect"):
        asyncio.run(main())


def test_long_answers_fit_a_line() -> None:
    ids = list(range(1_000_000, 1_050_000))
    chunks = [event(ids[:-1], len(ids) - 1), event(ids, len(ids), {"type": "length"}), DONE]

    with pytest.raises(RequestError, match="50000 tokens of 3"):
        ask(chunks)
