# SPDX-License-Identifier: Apache-2.0
"""Looks like an SGLang server to `vt-sglang chat`: /health, /server_info and a streamed /generate.

The next token is a hash of all tokens before it, and what was cached is the longest prefix in common with anything
seen before. Options make it misbehave.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import subprocess
import sys
from typing import Any

from aiohttp import web


def next_token(ids: list[int]) -> int:
    return hashlib.sha256(repr(ids).encode()).digest()[0]


def common_prefix(first: list[int], second: list[int]) -> int:
    """Tokens that both begin with."""
    pairs = zip(first, second, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


class FakeServer:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seen: list[list[int]] = []
        self.requests = self.running = 0

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.options.never_ready else 200)

    async def info(self, _: web.Request) -> web.Response:
        state: dict[str, Any] = {}
        if self.options.vtensor_leaks is not None:
            names = ("created", "aliased", "mapped", "unmapped")
            counters = {f"pages_{name}": number for number, name in enumerate(names, start=1001)}
            counters |= {"tails_extended": 2001, "tails_copied": 2002}
            state["vtensor"] = {"counters": counters, "usage": {}, "leaks": self.options.vtensor_leaks}
        return web.json_response({"max_total_num_tokens": 4096, "internal_states": [state]})

    async def flush_cache(self, _: web.Request) -> web.Response:
        if not self.options.keep_cache:
            self.seen.clear()
        return web.Response(status=400 if self.options.never_flush else 200)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        options, number = self.options, self.requests
        self.requests += 1
        if number == options.die_at:
            os._exit(7)
        if number == options.fail_at:
            return web.json_response({"error": {"message": "no room today"}}, status=400)
        asked = await request.json()
        prompt, tokens = asked["input_ids"], asked["sampling_params"]["max_new_tokens"]
        cached = max((common_prefix(prompt[:-1], ids) for ids in self.seen), default=0)
        meta = {"prompt_tokens": len(prompt), "cached_tokens": 0 if options.forgetful else cached}
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        if options.slow_above is not None:
            self.running += 1
            await asyncio.sleep(0.03)
            await asyncio.sleep(0.4 if self.running > options.slow_above else 0)
            self.running -= 1
        output: list[int] = []
        for _ in range(tokens):
            output.append(next_token(prompt + output))
            if (number, len(output) - 1) == (options.differ_at, 2):
                output[-1] = 256
            meta["completion_tokens"] = len(output)
            meta["finish_reason"] = {"type": "length"} if len(output) == tokens else None
            event = {"output_ids": output, "meta_info": meta}
            await stream.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(0.001)
        self.seen.append(prompt + output)
        await stream.write(b"data: [DONE]\n\n")
        return stream


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--say", default="", help="what to print at the start")
    parser.add_argument("--exit", type=int, help="exit at once with this status")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--child", help="start a child that ignores SIGTERM; write its process id to this file")
    parser.add_argument("--fail-at", type=int, help="number of the request that is refused")
    parser.add_argument("--differ-at", type=int, help="number of the request whose third token is another one")
    parser.add_argument("--die-at", type=int, help="number of the request at which the server dies")
    parser.add_argument("--forgetful", action="store_true", help="say that nothing was cached")
    parser.add_argument("--vtensor-leaks", type=int, help="say that virtual tensors had so many leaks")
    parser.add_argument("--never-flush", action="store_true", help="refuse to flush the cache")
    parser.add_argument("--keep-cache", action="store_true", help="say that the cache was flushed, and flush nothing")
    parser.add_argument("--slow-above", type=int, help="take 0.4 s more while more requests than that are here")
    options = parser.parse_args()
    print(options.say, flush=True)
    if options.exit is not None:
        sys.exit(options.exit)
    if options.child:
        child = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; echo; sleep 600"], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # it ignores the signal from here on
        with open(options.child, "w") as file:
            file.write(str(child.pid))
    server = FakeServer(options)
    app = web.Application()
    app.add_routes(
        [
            web.get("/health", server.health),
            web.get("/server_info", server.info),
            web.get("/flush_cache", server.flush_cache),
            web.post("/generate", server.generate),
        ]
    )
    web.run_app(app, host=options.host, port=options.port, print=lambda _: None)


if __name__ == "__main__":
    main()
