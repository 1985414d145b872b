# SPDX-License-Identifier: Apache-2.0
"""One request to a server's `/generate`, streamed and timed."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

# A server sends all ids so far with every token, on one line.
LONGEST_LINE_BYTES = 2**24


class RequestError(Exception):
    """A request got no whole answer."""


class ServerLostError(RequestError):
    """The server does not answer (in time), so that no other request can be expected to do better."""


@dataclass
class Answer:
    """What came back. Times count from just before the request was sent."""

    output_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    ttft_ms: float = 0.0
    """Time to the first token."""
    latency_ms: float = 0.0
    """Time to the last token."""
    inter_token_ms: list[float] = field(default_factory=list)
    """Time from each token to the next; tokens that came together share theirs evenly."""


class Client:
    """Sends requests to one server, any number at a time. An asynchronous context manager."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """timeout_s: seconds that one answer may take."""
        self._session = aiohttp.ClientSession(
            url,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
            read_bufsize=LONGEST_LINE_BYTES,
        )
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def generate(self, input_ids: list[int], output_tokens: int) -> Answer:
        """Let the server continue a prompt greedily by exactly `output_tokens` tokens.

        Raises:
            RequestError: it answered otherwise.
            ServerLostError: it did not answer.
        """
        sampling = {"temperature": 0, "max_new_tokens": output_tokens, "ignore_eos": True}
        request = {"input_ids": input_ids, "sampling_params": sampling, "stream": True}
        answer = Answer()
        try:
            finish = await self._stream(request, answer)
        except TimeoutError:
            raise ServerLostError(f"no answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise ServerLostError(f"{type(error).__name__}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"not an answer of /generate: {error!r}") from error
        if finish is None:
            raise RequestError(f"the stream ended after {len(answer.output_ids)} tokens, before the answer did")
        if finish.get("type") != "length" or len(answer.output_ids) != output_tokens:
            got = len(answer.output_ids)
            raise RequestError(f"{got} tokens of {output_tokens}; finish reason: {json.dumps(finish)}")
        return answer

    async def _stream(self, request: dict[str, Any], answer: Answer) -> dict[str, Any] | None:
        """Fill `answer` in as it comes. Returns its finish reason, None if the stream ended without."""
        finish: dict[str, Any] | None = None
        start = last = time.perf_counter()
        async with self._session.post("/generate", json=request) as response:
            if response.status != 200:
                raise RequestError(f"HTTP status {response.status}: {(await response.text())[:300]}")
            async for event in _events(response):
                now = time.perf_counter()
                if "error" in event:
                    raise RequestError(str(event["error"]["message"]))
                meta = event["meta_info"]
                # Servers send all ids so far or, with --incremental-streaming-output, new ones: these are new.
                new = meta["completion_tokens"] - len(answer.output_ids)
                if new > 0:
                    if answer.output_ids:
                        answer.inter_token_ms += [(now - last) * 1e3 / new] * new
                    else:
                        answer.ttft_ms = (now - start) * 1e3
                    answer.latency_ms = (now - start) * 1e3
                    answer.output_ids += event["output_ids"][-new:]
                    last = now
                answer.prompt_tokens, answer.cached_tokens = meta["prompt_tokens"], meta["cached_tokens"]
                finish = meta["finish_reason"]
        return finish


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events."""
    async for line in response.content:
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield json.loads(data)
