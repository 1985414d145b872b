# SPDX-License-Identifier: Apache-2.0
"""A real server on virtual tensors, with a tokenizer, metrics and KV events, and what can be asked of it."""

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vt_sglang.watch.sample import table

_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def _add_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes, as small as one can be."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 1, "</s>": 2, "<unk>": 0} | {symbol: 3 + i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "chat_template": _TEMPLATE,
            }
        )
    )


def _free_ports(count: int) -> list[int]:
    """Below those that systems give to outgoing connections, which take one before a server has come to listen."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            one = stack.enter_context(socket.socket())
            port = random.randrange(20_000, 32_000)
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
    return found


@contextmanager
def running(model: Path, folder: Path, *flags: str) -> Iterator[str]:
    """URL of a server that was launched with the one flag, and these; its log goes to the folder."""
    _add_tokenizer(model)
    port, events, replay = _free_ports(3)
    published = {"publisher": "zmq", "endpoint": f"tcp://127.0.0.1:{events}"}
    published["replay_endpoint"] = f"tcp://127.0.0.1:{replay}"
    log = folder / "server.log"
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)]
    command += ["--radix-cache-backend", "vtensor", "--vtensor-page-bytes", "8KiB", "--vtensor-check"]
    command += ["--device", "cpu", "--dtype", "float32", "--sampling-backend", "pytorch", "--grammar-backend", "none"]
    command += ["--context-length", "1024", "--max-total-tokens", "8192", "--max-running-requests", "8"]
    command += ["--chunked-prefill-size", "128", "--enable-cache-report", "--enable-metrics", "--port", str(port)]
    command += ["--kv-events-config", json.dumps(published), "--vtensor-event-block-tokens", "16"]
    command += flags
    environment = os.environ | {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-8000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=20).read()  # answers well after its warm-up only
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        else:
            pytest.fail(f"the server did not come up:\n{log.read_text()[-8000:]}")
        yield url
        assert process.poll() is None, f"the server died:\n{log.read_text()[-8000:]}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def server_info(server: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server}/server_info", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def vtensor_state(server: str) -> dict[str, Any]:
    found: dict[str, Any] = server_info(server)["internal_states"][0]["vtensor"]
    return found


def post(server: str, **request: Any) -> bytes:
    body = json.dumps({"sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}} | request)
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{server}/generate", body.encode(), headers), timeout=120
    ) as answer:
        return bytes(answer.read())


def generate(server: str, **request: Any) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(post(server, **request))
    return result


def generate_stream(server: str, **request: Any) -> list[dict[str, Any]]:
    lines = post(server, stream=True, **request).decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def metrics(server: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{server}/metrics", timeout=30) as answer:
        return table(answer.read().decode())


def settled(server: str) -> tuple[dict[str, float], dict[str, Any]]:
    """What /metrics and the core say once nothing runs."""
    deadline = time.monotonic() + 30
    while True:
        core, scraped = vtensor_state(server), metrics(server)
        quiet = core["usage"]["live_slots"] == 0
        if quiet and scraped["sglang:vtensor_requests_bound_total"] == core["counters"]["binds"]:
            return scraped, core
        assert time.monotonic() < deadline, "/metrics does not follow the core"
        time.sleep(0.1)


class Gains:
    """What was counted since the start of a test."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._metrics, self._state = settled(server)

    def all(self) -> dict[str, float]:
        """Cached tokens by who counted them, and prompt tokens. SGLang's HTTP process counts a request just after it
        answered; it has a moment for that."""
        deadline = time.monotonic() + 5
        while (found := self._now())["prompts"] != found["prompts, sglang"] and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _now(self) -> dict[str, float]:
        metrics, state = settled(self._server)

        def gained(name: str) -> float:
            return metrics.get(f"sglang:{name}", 0) - self._metrics.get(f"sglang:{name}", 0)

        sources = ("adopted", "aliased", "copied")
        return {
            "core": state["counters"]["tokens_matched"] - self._state["counters"]["tokens_matched"],
            "vtensor": sum(gained(f"vtensor_cached_tokens_total{{source={source}}}") for source in sources),
            "sglang": gained("cached_tokens_total"),
            "sglang, live": gained("realtime_tokens_total{mode=prefill_cache}"),
            "prompts": gained("vtensor_prompt_tokens_total"),
            "prompts, sglang": gained("prompt_tokens_total"),
        }
