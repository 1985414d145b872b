# SPDX-License-Identifier: Apache-2.0
"""What any SGLang server can be asked, and servers that others have started."""

import json
from types import TracebackType
from typing import Any, Self

import aiohttp

from vt_sglang.chat.client import Client, RequestError
from vt_sglang.chat.launch import Launch

# SGLang's /health has the model generate a token; it answers after one second, or not within twenty.
ASK_TIMEOUT_S = 30.0
# Less than that: how long SGLang waits for its last request to end before it refuses to flush its cache.
FLUSH_S = 10.0


class ServerError(Exception):
    """A server did not start, or does not do what a measurement needs; the message ends with its log's last lines."""


class Endpoint:
    """A server at an address. An asynchronous context manager: inside it, the server is ready for requests."""

    def __init__(self, launch: Launch, url: str) -> None:
        self.launch = launch
        self.url = url
        self.start_s = 0.0
        """Seconds from the start of the process until it was ready."""

    async def __aenter__(self) -> Self:
        """ServerError: it does not answer."""
        if not await self.healthy():
            raise ServerError(f"{self.launch.name}: no SGLang server answers at {self.url}/health")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def end(self) -> int | None:
        """The exit status of a server that answers no more; None if it goes on running, or nobody knows."""
        return None

    async def healthy(self) -> bool:
        """Whether the server generates tokens."""
        return await self._get("/health") is not None

    async def info(self) -> dict[str, Any] | None:
        """What `/server_info` says, None if the server does not answer."""
        content = await self._get("/server_info")
        return None if content is None else dict(json.loads(content))

    async def flush_cache(self) -> bool:
        """Have the server forget all prefixes as soon as no request is left. Whether it says that it did."""
        return await self._get(f"/flush_cache?timeout={FLUSH_S:g}") is not None

    async def forget(self, prompt: list[int], timeout_s: float) -> str | None:
        """Flush the cache, make sure that a prompt which was played finds nothing there any more, and flush again.

        Returns:
            What went wrong, None if nothing did.
        """
        if not await self.flush_cache():
            return "the cache could not be flushed"
        try:
            async with Client(self.url, timeout_s) as client:
                answer = await client.generate(prompt, output_tokens=1)
        except RequestError as error:
            return f"after a flush: {error}"
        if answer.cached_tokens:
            return f"{answer.cached_tokens} tokens of a prompt outlived a flush"
        return None if await self.flush_cache() else "the cache could not be flushed"

    async def _get(self, path: str) -> bytes | None:
        """The body of a successful answer."""
        try:
            timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self.url + path) as response:
                return await response.read() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None
