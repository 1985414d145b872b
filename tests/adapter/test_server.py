# SPDX-License-Identifier: Apache-2.0
"""A real server on virtual tensors, driven by the openai client as any application would."""

import argparse
import asyncio
import json
import os
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
from servers import Gains, generate, generate_stream, running, server_info, settled, vtensor_state

from vt_sglang.events.hashing import block_digests, event_hash
from vt_sglang.events.subscriber import Subscriber
from vt_sglang.events.view import View

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(model, tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120)


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
    before = vtensor_state(server)["counters"]
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
    after = vtensor_state(server)
    assert after["counters"]["pages_aliased"] > before["pages_aliased"]
    assert after["leaks"] == 0


def test_streaming_gives_the_same_text(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Stream this, please."}]
    whole = _chat(client, messages).choices[0].message.content
    pieces = _chat(client, messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices) == whole


def test_parallel_sampling_shares_its_prompt(client: openai.OpenAI, server: str) -> None:
    """n > 1: one prompt, several samples of it at once; greedy ones are equal."""
    before = vtensor_state(server)["counters"]["tokens_matched"]
    answer = _chat(client, [{"role": "user", "content": "Three of the same, " * 10}], n=3)
    texts = {choice.message.content for choice in answer.choices}
    assert len(answer.choices) == 3
    assert len(texts) == 1
    assert vtensor_state(server)["counters"]["tokens_matched"] - before >= 3 * (answer.usage.prompt_tokens - 1)


def test_logprobs_do_not_depend_on_the_cache(server: str) -> None:
    """Those of the prompt need its tokens to be computed again, from where they are asked for."""
    ids = [3 + (i * i) % 250 for i in range(150)]
    request = {"input_ids": ids, "return_logprob": True, "logprob_start_len": 100}
    first, second = (generate(server, **request)["meta_info"] for _ in range(2))
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] == 100
    for name in ("input_token_logprobs", "output_token_logprobs"):
        both = zip(first[name], second[name], strict=True)
        assert all(a[1] == b[1] and a[0] == pytest.approx(b[0], abs=1e-4) for a, b in both if a[0] is not None)
    assert len(first["input_token_logprobs"]) == 50


def test_all_tell_of_the_same_cached_tokens(client: openai.OpenAI, server: str) -> None:
    """meta_info and usage, streamed and not, over several chunks; /metrics, SGLang's and ours; /server_info."""
    gains = Gains(server)
    ids = [300, *(3 + (i * i * 7) % 250 for i in range(399))]  # its own beginning; prefilled in chunks of 128
    told = []
    for expected, tokens in ((0, 400), (399, 400), (299, 300)):
        meta = generate(server, input_ids=ids[:tokens])["meta_info"]
        assert meta["cached_tokens"] == expected
        assert expected == 0 or meta["cached_tokens_details"] == {"device": expected, "host": 0}
        told.append((meta["prompt_tokens"], expected))
    streamed = generate_stream(server, input_ids=ids)
    assert streamed[-1]["meta_info"]["completion_tokens"] == 8  # in up to as many pieces
    assert {it["meta_info"]["cached_tokens"] for it in streamed} == {399}
    told.append((400, 399))
    messages = [{"role": "user", "content": "Metrics, please. " * 20}]
    for stream in (False, False, True):
        options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
        answer = _chat(client, messages, stream=stream, **options)
        usage = [it.usage for it in answer if it.usage][-1] if stream else answer.usage
        told.append(
            (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0)
        )
    found = gains.all()
    cached = sum(it for _, it in told)
    assert found == dict.fromkeys(("core", "vtensor", "sglang", "sglang, live"), cached) | dict.fromkeys(
        ("prompts", "prompts, sglang"), sum(tokens for tokens, _ in told)
    )
    metrics, state = settled(server)
    pages = {name: metrics[f"sglang:vtensor_pages{{state={name}}}"] for name in state["pages"]}
    assert pages == state["pages"]
    assert sum(pages.values()) == metrics["sglang:vtensor_budget_pages"] == state["usage"]["budget_pages"]
    assert state["busiest"][0]["hits"] >= 3


def test_sglangs_own_benchmark_reports_what_we_count(server: str, model: Path, tmp_path: Path) -> None:
    """`--dataset-name generated-shared-prefix --cache-report`, in small."""
    from shared_prefix import benchmark_command, run_benchmark

    sizes = argparse.Namespace(
        groups=3, prompts_per_group=3, system_tokens=200, question_tokens=30, output_tokens=4, concurrency=3, seed=1
    )
    gains = Gains(server)
    output = tmp_path / "benchmark.jsonl"
    asyncio.run(run_benchmark(benchmark_command(server, str(model), sizes, output), tmp_path))
    report = json.loads(output.read_text())
    found = gains.all()
    assert report["completed"] == 9
    cached = report["cache_report"]["total_cached_tokens"]
    assert cached > 500
    assert {found[name] for name in ("core", "vtensor", "sglang", "sglang, live")} == {cached}


def test_watch_shows_this_server(server: str) -> None:
    """`vt-sglang watch --once --json` says what the server does."""
    command = [sys.executable, "-m", "vt_sglang", "watch", server, "--once", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    state = vtensor_state(server)
    assert (found["metrics"], found["vtensor"], found["notes"]) == (True, True, [])
    assert found["cached_tokens"] == state["counters"]["tokens_matched"]
    assert found["pages"] == state["pages"]


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
    while (state := vtensor_state(server))["usage"]["live_slots"] and time.monotonic() < deadline:
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
    usage = vtensor_state(server)["usage"]
    assert usage["tree_tokens"] == 0
    assert usage["held_pages"] == 1  # the padding page
    details = _chat(client, messages).usage.prompt_tokens_details
    assert details is None or details.cached_tokens == 0


def test_events_tell_what_the_tree_holds(server: str) -> None:
    """Found as a router finds them; joined late, and followed through a flush."""
    info = server_info(server)
    described = info["kv_events"]
    assert (described["publisher"], described["block_size"], info["page_size"]) == ("zmq", 16, 1)
    endpoint = f"tcp://{described['endpoint_host']}:{described['endpoint_port_base']}"
    prompt = [3 + (i * 7) % 250 for i in range(205)]
    view = View()
    generate(server, input_ids=prompt)
    with Subscriber(endpoint, json.loads(info["kv_events_config"])["replay_endpoint"]) as late:
        _until(late, view, lambda: view.tokens > 200 and vtensor_state(server)["usage"]["live_slots"] == 0)
        assert view.changes.stored_again == view.changes.removed_unknown == 0
        tokens = vtensor_state(server)["usage"]["tree_tokens"]
        assert 200 < view.tokens <= tokens
        _flush(server)
        _until(late, view, lambda: view.blocks == {})
        answer = generate(server, input_ids=prompt)
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
