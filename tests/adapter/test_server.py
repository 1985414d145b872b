# SPDX-License-Identifier: Apache-2.0
"""A real server on virtual tensors, driven by the openai client as any application would."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vt_sglang.events.hashing import block_digests, event_hash
from vt_sglang.events.subscriber import Subscriber
from vt_sglang.events.view import View

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


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that was launched with the one flag."""
    _add_tokenizer(model)
    with socket.socket() as free, socket.socket() as events, socket.socket() as replay:
        ports = []
        for one in (free, events, replay):
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    port = ports[0]
    published = {"publisher": "zmq", "endpoint": f"tcp://127.0.0.1:{ports[1]}"}
    published["replay_endpoint"] = f"tcp://127.0.0.1:{ports[2]}"
    log = tmp_path_factory.mktemp("server") / "server.log"
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)]
    command += ["--radix-cache-backend", "vtensor", "--vtensor-page-bytes", "8KiB", "--vtensor-check"]
    command += ["--device", "cpu", "--dtype", "float32", "--sampling-backend", "pytorch", "--grammar-backend", "none"]
    command += ["--context-length", "1024", "--max-total-tokens", "8192", "--max-running-requests", "8"]
    command += ["--chunked-prefill-size", "128", "--enable-cache-report", "--port", str(port)]
    command += ["--kv-events-config", json.dumps(published), "--vtensor-event-block-tokens", "16"]
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
                urllib.request.urlopen(f"{url}/v1/models", timeout=1).read()
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


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120)


def _info(server: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server}/server_info", timeout=30) as answer:
        info: dict[str, Any] = json.load(answer)
    return info


def _state(server: str) -> dict[str, Any]:
    state: dict[str, Any] = _info(server)["internal_states"][0]["vtensor"]
    return state


def _chat(client: openai.OpenAI, messages: list[dict[str, str]], **options: Any) -> Any:
    return client.chat.completions.create(
        model="default",
        messages=messages,
        temperature=0,
        max_tokens=16,
        **({"extra_body": {"ignore_eos": True}} | options),
    )


def test_a_conversation_is_cached_turn_by_turn(client: openai.OpenAI, server: str) -> None:
    """Each turn finds the whole of the turn before, and answers as without a cache."""
    before = _state(server)["counters"]
    messages = [{"role": "system", "content": "Answer in rhymes. " * 8}, {"role": "user", "content": "Begin."}]
    prompt_before = 0
    for turn in range(4):
        answer = _chat(client, messages)
        usage = answer.usage
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        assert cached >= prompt_before, f"turn {turn}"
        again = _chat(client, messages)
        assert again.choices[0].message.content == answer.choices[0].message.content
        assert again.usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
        prompt_before = usage.prompt_tokens
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": f"And verse {turn}?"},
        ]
    after = _state(server)
    assert after["counters"]["pages_aliased"] > before["pages_aliased"]
    assert after["leaks"] == 0


def test_streaming_gives_the_same_text(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Stream this, please."}]
    whole = _chat(client, messages).choices[0].message.content
    pieces = _chat(client, messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices) == whole


def test_parallel_sampling_shares_its_prompt(client: openai.OpenAI, server: str) -> None:
    """n > 1: one prompt, several samples of it at once; greedy ones are equal."""
    before = _state(server)["counters"]["tokens_matched"]
    answer = _chat(client, [{"role": "user", "content": "Three of the same, " * 10}], n=3)
    texts = {choice.message.content for choice in answer.choices}
    assert len(answer.choices) == 3
    assert len(texts) == 1
    assert _state(server)["counters"]["tokens_matched"] - before >= 3 * (answer.usage.prompt_tokens - 1)


def _generate(server: str, **request: Any) -> dict[str, Any]:
    body = json.dumps({"sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}} | request)
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{server}/generate", body.encode(), headers), timeout=120
    ) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


def test_logprobs_do_not_depend_on_the_cache(server: str) -> None:
    """Those of the prompt need its tokens to be computed again, from where they are asked for."""
    ids = [3 + (i * i) % 250 for i in range(150)]
    request = {"input_ids": ids, "return_logprob": True, "logprob_start_len": 100}
    first, second = (_generate(server, **request)["meta_info"] for _ in range(2))
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] == 100
    for name in ("input_token_logprobs", "output_token_logprobs"):
        both = zip(first[name], second[name], strict=True)
        assert all(a[1] == b[1] and a[0] == pytest.approx(b[0], abs=1e-4) for a, b in both if a[0] is not None)
    assert len(first["input_token_logprobs"]) == 50


def test_a_cache_salt_isolates(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "A secret that others must not be able to time. " * 3}]

    def cached(salt: str | None) -> int:
        body = {"ignore_eos": True} | ({"cache_salt": salt} if salt else {})
        details = _chat(client, messages, extra_body=body).usage.prompt_tokens_details
        return details.cached_tokens if details else 0

    first = {salt: cached(salt) for salt in (None, "alice", "bob")}
    second = {salt: cached(salt) for salt in (None, "alice", "bob")}
    assert max(first.values()) <= len("<user>")  # what every prompt begins with, in the common namespace
    assert first["alice"] == first["bob"] == 0
    assert min(second.values()) > 100


def test_many_at_once_and_clients_that_leave(client: openai.OpenAI, server: str) -> None:
    """Concurrent requests, some of whose clients hang up in the middle: nothing leaks, later answers are right."""
    messages = [{"role": "user", "content": "Count the sheep. " * 12}]
    expected = _chat(client, messages).choices[0].message.content

    def leave(i: int) -> None:
        stream = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": f"Count the sheep. {i} " * 12}],
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for number, _ in enumerate(stream):
            if number == 3 + i:
                stream.close()
                return

    with ThreadPoolExecutor(12) as pool:
        leaving = [pool.submit(leave, i) for i in range(5)]
        staying = [pool.submit(_chat, client, messages) for _ in range(10)]
        for future in leaving:
            future.result()
        for future in staying:
            assert future.result().choices[0].message.content == expected
    deadline = time.monotonic() + 30
    while (state := _state(server))["usage"]["live_slots"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert state["usage"]["live_slots"] == 0
    assert state["leaks"] == 0


def _flush(server: str) -> None:
    deadline = time.monotonic() + 30
    while True:  # refused while anything runs
        request = urllib.request.Request(f"{server}/flush_cache", method="POST")
        try:
            urllib.request.urlopen(request, timeout=10).read()
            break
        except urllib.error.HTTPError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_flush_forgets_everything(client: openai.OpenAI, server: str) -> None:
    messages = [{"role": "user", "content": "Remember me not."}]
    _chat(client, messages)
    _flush(server)
    usage = _state(server)["usage"]
    assert usage["tree_tokens"] == 0
    assert usage["held_pages"] == 1  # the padding page
    details = _chat(client, messages).usage.prompt_tokens_details
    assert details is None or details.cached_tokens == 0


def test_events_tell_what_the_tree_holds(server: str) -> None:
    """Found as a router finds them; joined late, and followed through a flush."""
    info = _info(server)
    described = info["kv_events"]
    assert (described["publisher"], described["block_size"], info["page_size"]) == ("zmq", 16, 1)
    endpoint = f"tcp://{described['endpoint_host']}:{described['endpoint_port_base']}"
    prompt = [3 + (i * 7) % 250 for i in range(205)]
    view = View()
    _generate(server, input_ids=prompt)
    with Subscriber(endpoint, json.loads(info["kv_events_config"])["replay_endpoint"]) as late:
        _until(late, view, lambda: view.tokens > 200 and _state(server)["usage"]["live_slots"] == 0)
        assert view.changes.stored_again == view.changes.removed_unknown == 0
        tokens = _state(server)["usage"]["tree_tokens"]
        assert 200 < view.tokens <= tokens
        _flush(server)
        _until(late, view, lambda: view.blocks == {})
        answer = _generate(server, input_ids=prompt)
        path = [*prompt, *answer["output_ids"]]  # whether the last token is recorded makes no block more
        names = [event_hash(digest) for digest in block_digests(np.array(path), 16, None)]
        assert len(names) == 13
        _until(late, view, lambda: len(view.blocks) == len(names))
        assert view.path(names[-1]) == path[: 16 * len(names)]
        assert late.statistics.missed == 0


def _until(subscriber: Subscriber, view: View, said: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while True:
        for update in subscriber.poll(0.2):
            view.update(update)
        if said():
            return
        assert time.monotonic() < deadline, f"{len(view.blocks)} blocks, {subscriber.statistics}"


_ENGINE = """
import json, sys
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(
        model_path=sys.argv[1], radix_cache_backend="vtensor", device="cpu", dtype="float32", skip_tokenizer_init=True,
        sampling_backend="pytorch", grammar_backend="none", max_total_tokens=4096, context_length=1024,
        max_running_requests=4, log_level="error",
    )
    sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    answers = [engine.generate(input_ids=list(range(3, 120)), sampling_params=sampling) for _ in range(2)]
    page_bytes = engine.get_server_info()["internal_states"][0]["vtensor"]["page_bytes"]
    engine.shutdown()
    print("RESULT" + json.dumps([answers, page_bytes]))
"""


def test_the_engine_of_a_program(model: Path, tmp_path: Path) -> None:
    """`sglang.Engine` in a program: the same argument, and options by environment."""
    script = tmp_path / "program.py"
    script.write_text(_ENGINE)
    done = subprocess.run(
        [sys.executable, str(script), str(model)],
        env=os.environ | {"VTENSOR_PAGE_BYTES": "16KiB"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "RESULT" in done.stdout, done.stdout[-2000:] + done.stderr[-6000:]
    (first, second), page_bytes = json.loads(done.stdout.split("RESULT")[1].splitlines()[0])
    assert page_bytes == 16384
    assert first["output_ids"] == second["output_ids"]
    assert (first["meta_info"]["cached_tokens"], second["meta_info"]["cached_tokens"]) == (0, 116)
