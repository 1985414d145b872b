# SPDX-License-Identifier: Apache-2.0
"""Launch flags, what one flag implies, and what is refused before a server starts."""

import argparse
import os
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vt_sglang.config import VTensorConfig, parse_bytes

pytestmark = pytest.mark.usefixtures("plugged")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VTENSOR_")]:
        monkeypatch.delenv(name)
    # What a flag sets is undone with the rest.
    for field in fields(VTensorConfig):
        monkeypatch.setenv(f"VTENSOR_{field.name.upper()}", "0" if field.name == "check" else "auto")


def _parse(model: Path, *arguments: str) -> Any:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    common = ["--model-path", str(model), "--device", "cpu", "--skip-tokenizer-init"]
    return ServerArgs.from_cli_args(parser.parse_args([*common, *arguments]))


def test_one_flag_is_enough(model: Path) -> None:
    args = _parse(model, "--radix-cache-backend", "vtensor")
    assert args.attention_backend == "vtensor"
    assert args.page_size == 1
    assert VTensorConfig.from_environment() == VTensorConfig()


def test_stock_is_left_alone(model: Path) -> None:
    args = _parse(model)
    assert args.radix_cache_backend is None
    assert args.attention_backend != "vtensor"


def test_flags_reach_child_processes(model: Path) -> None:
    _parse(model, "--radix-cache-backend", "vtensor", "--vtensor-page-bytes", "64KiB", "--vtensor-check")
    assert VTensorConfig.from_environment() == VTensorConfig(page_bytes=65536, check=True)
    assert os.environ["VTENSOR_PAGE_BYTES"] == "65536"


def test_flags_are_in_help() -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    shown = parser.format_help()
    for field in fields(VTensorConfig):
        assert f"--vtensor-{field.name.replace('_', '-')} " in shown


def test_flags_without_the_backend_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="--vtensor-page-bytes: this needs --radix-cache-backend vtensor"):
        _parse(model, "--vtensor-page-bytes", "2MiB")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--vtensor-page-bytes", "huge", "2MiB, 64KiB or 4096"),
        ("--vtensor-page-bytes", "0", "multiple of this system's pages"),
        ("--vtensor-page-bytes", "4097", "multiple of this system's pages"),
    ],
)
def test_bad_values_say_what_is_good(
    model: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, says: str
) -> None:
    with pytest.raises(SystemExit):
        _parse(model, "--radix-cache-backend", "vtensor", flag, value)
    assert says in capsys.readouterr().err


def test_bad_variable_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTENSOR_PAGE_BYTES", "two")
    with pytest.raises(ValueError, match="VTENSOR_PAGE_BYTES: 'two'"):
        _parse(model, "--radix-cache-backend", "vtensor")


@pytest.mark.parametrize(
    ("text", "expected"), [("4096", 4096), ("2MiB", 2**21), ("64k", 65536), ("64KB", 65536), (" 1 g ", 2**30)]
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("attribute", "value", "flag"),
    [
        ("disable_radix_cache", True, "--disable-radix-cache"),
        ("enable_hierarchical_cache", True, "--enable-hierarchical-cache"),
        ("enable_lmcache", True, "--enable-lmcache"),
        ("enable_flexkv", True, "--enable-flexkv"),
        ("enable_streaming_session", True, "--enable-streaming-session"),
        ("disaggregation_mode", "prefill", "--disaggregation-mode"),
        ("speculative_algorithm", "NGRAM", "--speculative-algorithm"),
        ("enable_two_batch_overlap", True, "--enable-two-batch-overlap"),
        ("enable_memory_saver", True, "--enable-memory-saver"),
        ("kv_events_config", "{}", "--kv-events-config"),
        ("page_size", 16, "--page-size"),
        ("radix_eviction_policy", "lfu", "--radix-eviction-policy"),
        ("schedule_policy", "dfs-weight", "--schedule-policy"),
        ("tp_size", 2, "--tp-size"),
        ("pp_size", 2, "--pp-size"),
        ("dp_size", 2, "--dp-size"),
        ("kv_cache_dtype", "fp8_e4m3", "--kv-cache-dtype"),
        ("attention_backend", "flashinfer", "--attention-backend"),
        ("decode_attention_backend", "triton", "--decode-attention-backend"),
        ("device", "xpu", "--device"),
    ],
)
def test_options_that_do_not_work_are_refused(model: Path, attribute: str, value: Any, flag: str) -> None:
    from sglang.srt.server_args import ServerArgs

    options = {"model_path": str(model), "device": "cpu", "radix_cache_backend": "vtensor", attribute: value}
    with pytest.raises(ValueError, match="--radix-cache-backend vtensor does not go with") as refused:
        ServerArgs(**options)
    (line,) = [it for it in str(refused.value).splitlines() if it.strip().startswith(flag)]
    assert re.search(r"leave|lower|choose|use|start|for now", line), "nothing is said of what to do"


def test_everything_refused_is_named_at_once(model: Path) -> None:
    from sglang.srt.server_args import ServerArgs

    with pytest.raises(ValueError, match=r"(?s)--enable-lmcache.*--page-size"):
        ServerArgs(str(model), device="cpu", radix_cache_backend="vtensor", enable_lmcache=True, page_size=16)


def test_another_pool_by_environment_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_USE_HND_KVCACHE", "1")
    with pytest.raises(ValueError, match="SGLANG_USE_HND_KVCACHE: unset it"):
        _parse(model, "--radix-cache-backend", "vtensor")


def test_prefill_graphs_are_refused() -> None:
    from vt_sglang.adapter.refusals import refuse_prefill_graph

    def args(backend: str) -> Any:
        return SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(backend=backend)))

    refuse_prefill_graph(args("disabled"))
    with pytest.raises(ValueError, match="leave --cuda-graph-backend-prefill out"):
        refuse_prefill_graph(args("breakable"))


_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 512,
}
_MLA = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}


@pytest.mark.parametrize(
    ("model_type", "architecture", "options", "says"),
    [
        ("deepseek_v2", "DeepseekV2ForCausalLM", _SMALL | _MLA, "its attention is MLA"),
        ("gpt_oss", "GptOssForCausalLM", _SMALL, "attention backends of its own"),
        ("gemma2", "Gemma2ForCausalLM", _SMALL, "logits are capped at 50"),
        ("qwen3_next", "Qwen3NextForCausalLM", _SMALL, "state-space or linear-attention"),
        ("falcon_h1", "FalconH1ForCausalLM", _SMALL, "state-space or linear-attention"),
        ("whisper", "WhisperForConditionalGeneration", {}, "encoder-decoder"),
        ("bert", "BertModel", _SMALL, "does not generate"),
    ],
)
def test_models_that_do_not_work_are_refused(
    tmp_path: Path, model_type: str, architecture: str, options: dict[str, Any], says: str
) -> None:
    from sglang.srt.server_args import ServerArgs
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**options)
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"does not go with:\\n  {architecture}: .*{says}"):
        ServerArgs(str(tmp_path), device="cpu", radix_cache_backend="vtensor", skip_tokenizer_init=True)


@pytest.mark.parametrize(
    ("model_type", "architecture"), [("qwen2", "Qwen2ForCausalLM"), ("gemma3_text", "Gemma3ForCausalLM")]
)
def test_models_of_plain_attention_are_taken(tmp_path: Path, model_type: str, architecture: str) -> None:
    from sglang.srt.server_args import ServerArgs
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**_SMALL)
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    args = ServerArgs(str(tmp_path), device="cpu", radix_cache_backend="vtensor", skip_tokenizer_init=True)
    assert args.attention_backend == "vtensor"
