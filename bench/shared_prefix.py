# SPDX-License-Identifier: Apache-2.0
"""Do SGLang's own benchmark and this project's counters see the same cached tokens?

Starts a server on virtual tensors, runs SGLang's `bench_serving --dataset-name generated-shared-prefix --cache-report`
against it, and compares what that reports with what /metrics gained meanwhile. Exit status: 1 if they differ.

python bench/shared_prefix.py --groups 4 --prompts-per-group 6     # a toy model with random weights, on a CPU or a GPU
python bench/shared_prefix.py --model-path MODEL                   # yours, with its tokenizer
"""

import argparse
import asyncio
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from vt_sglang import machine
from vt_sglang.chat import toy_model
from vt_sglang.chat.files import write_whole
from vt_sglang.chat.launch import CPU_ENVIRONMENT, CPU_FLAGS, VTENSOR, Launch
from vt_sglang.chat.server import Server, ServerError
from vt_sglang.result_file import header
from vt_sglang.watch.sample import table
from vt_sglang.watch.source import Source

TOY = Path(".cache/vt-sglang/toy-llama-ascii")
SETTLE_S = 20.0
SOURCES = ("adopted", "aliased", "copied")


def add_tokenizer(folder: Path) -> None:
    """One token a printable ASCII character: any sequence of tokens is a text that gives the same tokens again, as the
    benchmark takes for granted when it draws prompts of a certain length."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = [encode.pre_tokenize_str(chr(code))[0][0] for code in range(ord(" "), ord("~") + 1)]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = encode
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_whole(folder / "tokenizer_config.json", b'{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


def launch(model: str, device: str, extra: list[str]) -> Launch:
    """A server on virtual tensors, with metrics."""
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", model, *VTENSOR, "--enable-metrics"]
    if device == "cpu":
        command += [*CPU_FLAGS, "--max-total-tokens", "32768", "--max-running-requests", "8"]
    wanted = CPU_ENVIRONMENT if device == "cpu" else {}
    return Launch("vtensor", [*command, *extra], {name: it for name, it in wanted.items() if name not in os.environ})


def benchmark_command(url: str, model: str, arguments: argparse.Namespace, output: Path) -> list[str]:
    """SGLang's benchmark, on this server."""
    command = [sys.executable, "-m", "sglang.benchmark.serving", "--backend", "sglang", "--base-url", url]
    command += ["--model", model, "--tokenizer", model, "--dataset-name", "generated-shared-prefix", "--cache-report"]
    command += ["--gsp-num-groups", str(arguments.groups), "--gsp-prompts-per-group", str(arguments.prompts_per_group)]
    command += ["--gsp-system-prompt-len", str(arguments.system_tokens)]
    command += ["--gsp-question-len", str(arguments.question_tokens), "--gsp-output-len", str(arguments.output_tokens)]
    command += ["--max-concurrency", str(arguments.concurrency), "--seed", str(arguments.seed)]
    return [*command, "--warmup-requests", "0", "--disable-tqdm", "--output-file", str(output), "--output-details"]


async def run_benchmark(command: list[str], folder: Path) -> None:
    """RuntimeError, with the end of what it printed, if it failed."""
    # The benchmark keeps prompts in the home folder, under a name that does not say by which tokenizer.
    environment = os.environ | {"HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    if importlib.util.find_spec("datasets") is None:
        # It imports a library for data sets that these prompts have no use for, and that a CPU's SGLang comes without.
        (folder / "datasets.py").write_text("load_dataset = None\n")
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        printed, _ = await process.communicate()
    except BaseException:
        process.kill()
        raise
    if process.returncode != 0:
        raise RuntimeError(f"the benchmark failed:\n{printed.decode(errors='replace')[-3000:]}")


async def settled(server: Server, source: Source) -> tuple[dict[str, float], dict[str, Any]]:
    """What /metrics and the core say when nothing runs any more and both have caught up. RuntimeError if never."""
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    while True:
        info = await server.info()
        sums = table(await asyncio.to_thread(source.metrics) or "")
        vtensor = {} if info is None else info["internal_states"][0]["vtensor"]
        quiet = bool(vtensor) and vtensor["usage"]["live_slots"] == 0
        if quiet and cached(sums) == vtensor["counters"]["tokens_matched"]:
            return sums, vtensor
        if asyncio.get_running_loop().time() > deadline:
            raise RuntimeError(f"/metrics and /server_info still differ after {SETTLE_S:g} s")
        await asyncio.sleep(0.2)


def cached(sums: dict[str, float]) -> float:
    """Cached tokens of all sources."""
    return sum(sums[f"sglang:vtensor_cached_tokens_total{{source={source}}}"] for source in SOURCES)


def gained(name: str, before: dict[str, float], after: dict[str, float]) -> int:
    """What a counter gained; SGLang's own are missing before they first count."""
    return int(after.get(name, 0.0) - before.get(name, 0.0))


def figures(before: dict[str, float], after: dict[str, float], report: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Prompt and cached tokens as the benchmark, SGLang's metrics and this project's have them.

    This project's count a request that was retracted as often as it was admitted; both others only the first time.
    """
    prompts, hits = "prompt_tokens_total", "cached_tokens_total"
    again = "sglang:vtensor_rebound_{}_tokens_total"
    return {
        "benchmark": {
            "prompt_tokens": report["cache_report"]["total_prompt_tokens"],
            "cached_tokens": report["cache_report"]["total_cached_tokens"],
        },
        "sglang_metrics": {
            "prompt_tokens": gained(f"sglang:{prompts}", before, after),
            "cached_tokens": gained(f"sglang:{hits}", before, after),
        },
        "vtensor_metrics": {
            "prompt_tokens": gained(f"sglang:vtensor_{prompts}", before, after)
            - gained(again.format("prompt"), before, after),
            "cached_tokens": int(cached(after) - cached(before)) - gained(again.format("cached"), before, after),
        },
    }


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start, run, compare."""
    device = "cuda" if machine.gpus().names else "cpu"
    model = arguments.model_path
    if model is None:
        toy_model.ensure(TOY)
        add_tokenizer(TOY)
        model = str(TOY.resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = launch(model, device, arguments.server_args.split())
        async with Server(started, folder / "server.log", 600) as server:
            source = Source(server.url)
            before, _ = await settled(server, source)
            command = benchmark_command(server.url, model, arguments, folder / "benchmark.jsonl")
            await run_benchmark(command, folder)
            after, state = await settled(server, source)
        report = json.loads((folder / "benchmark.jsonl").read_text().splitlines()[-1])
    found = figures(before, after, report)
    by_source = {
        source: gained(f"sglang:vtensor_cached_tokens_total{{source={source}}}", before, after) for source in SOURCES
    }
    equal = len({tuple(it.values()) for it in found.values()}) == 1 and state["leaks"] == 0
    return {
        "model": Path(model).name,
        "requests": report["completed"],
        "figures": found,
        "cached_by_source": by_source,
        "retracted": gained("sglang:vtensor_rebound_requests_total", before, after),
        "leaks": state["leaks"],
        "server": [Path(it).name if "/" in it else it for it in started.command],
        "benchmark": [Path(it).name if "/" in it else it for it in command],
        "exit_status": 0 if equal else 1,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", help="default: a toy Llama with random weights and a tokenizer of characters")
    parser.add_argument("--groups", type=int, default=4, help="system prompts")
    parser.add_argument("--prompts-per-group", type=int, default=6)
    parser.add_argument("--system-tokens", type=int, default=512)
    parser.add_argument("--question-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=4, help="requests at the same time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server-args", default="", help="further arguments of the server, in one string")
    parser.add_argument("--report", type=Path, default=Path("report/shared_prefix.json"))
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    try:
        result = asyncio.run(measure(arguments))
    except (RuntimeError, ServerError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{'':20}{'prompt tokens':>16}{'cached tokens':>16}")
    for name, found in result["figures"].items():
        print(f"{name:20}{found['prompt_tokens']:>16,}{found['cached_tokens']:>16,}")
    print("cached by source:   ", ", ".join(f"{it} {tokens:,}" for it, tokens in result["cached_by_source"].items()))
    print("The figures", "are equal." if result["exit_status"] == 0 else "DIFFER.")
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.report, json.dumps(header("shared-prefix") | result, indent=1).encode() + b"\n")
    print(f"written: {arguments.report}")
    return int(result["exit_status"])


if __name__ == "__main__":
    sys.exit(main())
