# SPDX-License-Identifier: Apache-2.0
"""Launch flags, what one flag implies, and what is refused before a server starts."""

import argparse
import json
import os
import re
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vt_sglang.config import Kernel, VTensorConfig, parse_bytes

pytestmark = pytest.mark.usefixtures("plugged")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VTENSOR_")]:
        monkeypatch.delenv(name)
    # What a flag sets is undone with the rest.
    for field in fields(VTensorConfig):
        default = int(field.default) if isinstance(field.default, bool) else field.default
        value = "auto" if default is None else str(default)
        monkeypatch.setenv(f"VTENSOR_{field.name.upper()}", value)


_VTENSOR = ("--radix-cache-backend", "vtensor")


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


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("VTENSOR_PAGE_BYTE", "VTENSOR_PAGE_BYTES"),
        ("VTENSOR_PREFIL_KERNEL", "VTENSOR_PREFILL_KERNEL"),
        ("VTENSOR_DECODEKERNEL", "VTENSOR_DECODE_KERNEL"),
        ("VTENSOR_idle_trim", "VTENSOR_IDLE_TRIM"),
        ("VTENSOR_SHARED_DECODING", "VTENSOR_SHARED_DECODE"),
        ("VTENSOR_CHECKS", "VTENSOR_CHECK"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest(
    model: Path, monkeypatch: pytest.MonkeyPatch, variable: str, nearest: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValueError, match=f"^{variable} sets no option of vt-sglang; the nearest is {nearest}[.] "):
        _parse(model, *_VTENSOR)
    with pytest.raises(ValueError, match=variable):  # where a flag is given, too
        _parse(model, *_VTENSOR, "--vtensor-check")
    assert _parse(model).radix_cache_backend is None, "a server without virtual tensors has nothing to do with it"


def test_all_unknown_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTENSOR_", "")
    monkeypatch.setenv("VTENSOR_PAGES", "1")
    with pytest.raises(ValueError, match=r"VTENSOR_ sets .*; VTENSOR_PAGES sets ") as refused:
        VTensorConfig.from_environment()
    assert "\n" not in str(refused.value)


def test_variables_of_a_kubernetes_service_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR"]
    for name in [*names, "EU_SERVICE_HOST", "EU_PORT_30000_TCP_PROTO"]:
        monkeypatch.setenv(f"VTENSOR_{name}", "10.0.0.1")
    assert VTensorConfig.from_environment() == VTensorConfig()


def test_flags_reach_child_processes(model: Path) -> None:
    flags = ["--vtensor-page-bytes", "64KiB", "--vtensor-check", "--vtensor-exportable-pages"]
    flags += ["--vtensor-shared-decode", "off", "--vtensor-map-ahead", "off", "--vtensor-idle-trim", "1.5"]
    _parse(model, "--radix-cache-backend", "vtensor", *flags)
    assert VTensorConfig.from_environment() == VTensorConfig(
        page_bytes=65536, shared_decode=False, map_ahead=False, exportable_pages=True, idle_trim=1.5, check=True
    )
    assert os.environ["VTENSOR_PAGE_BYTES"] == "65536"


def test_events_are_published_on_loopback_unless_told_otherwise(model: Path) -> None:
    def config(text: str) -> Any:
        return json.loads(_parse(model, *_VTENSOR, "--kv-events-config", text).kv_events_config)

    assert config('{"publisher": "zmq"}') == {"publisher": "vtensor-zmq", "endpoint": "tcp://127.0.0.1:5557"}
    told = {"publisher": "zmq", "endpoint": "tcp://*:6000", "replay_endpoint": "tcp://localhost:6001", "topic": "kv"}
    assert config(json.dumps(told)) == told | {
        "publisher": "vtensor-zmq",
        "replay_endpoint": "tcp://127.0.0.1:6001",
    }
    assert config("{}") == {}  # SGLang's default publisher, which publishes nothing


def test_routers_are_told_the_size_of_the_blocks(model: Path) -> None:
    flags = [*_VTENSOR, "--kv-events-config", '{"publisher": "zmq", "endpoint": "tcp://*:6000"}']
    described = _parse(model, *flags).describe_kv_events_publisher()
    assert (described["publisher"], described["endpoint_host"], described["endpoint_port_base"]) == ("zmq", "*", 6000)
    assert described["block_size"] == VTensorConfig().event_block_tokens == 64
    args = _parse(model, *flags, "--vtensor-event-block-tokens", "16")
    assert args.describe_kv_events_publisher()["block_size"] == 16
    assert args.page_size == 1
    assert _parse(model, *_VTENSOR).describe_kv_events_publisher() is None


def test_stock_events_are_left_alone(model: Path) -> None:
    from sglang.srt.server_args import ServerArgs

    text = '{"publisher": "zmq"}'
    args = ServerArgs(model_path=str(model), device="cpu", page_size=4, kv_events_config=text)
    assert args.kv_events_config == text
    assert args.describe_kv_events_publisher()["block_size"] == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("zmq", "is not what SGLang reads"),
        ("[]", "is not what SGLang reads"),
        ('{"publisher": "zmq", "hwm": "many"}', "is not what SGLang reads .*hwm"),
        ('{"publisher": "nats"}', "names the publisher 'nats'.*it is zmq"),
        ('{"publisher": "zmq", "endpoint": "tcp://*"}', r"has the endpoint 'tcp://\*'; write for example tcp://127"),
        ('{"publisher": "zmq", "endpoint": "tcp://*:0"}', "has the endpoint"),
        ('{"publisher": "zmq", "replay_endpoint": "5558"}', "has the replay_endpoint '5558'"),
        ('{"publisher": "zmq", "replay_endpoint": "tcp://*:5557"}', "has endpoint and replay_endpoint at one port"),
    ],
)
def test_events_that_cannot_be_published_are_refused(model: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"--kv-events-config {says}") as refused:
        _parse(model, *_VTENSOR, "--kv-events-config", text)
    assert "\n" not in str(refused.value)


def test_a_size_of_blocks_needs_events(model: Path) -> None:
    with pytest.raises(ValueError, match="--vtensor-event-block-tokens: without --kv-events-config"):
        _parse(model, *_VTENSOR, "--vtensor-event-block-tokens", "16")


def test_kernels_of_a_gpu_are_refused_on_a_cpu(model: Path) -> None:
    flags = ["--vtensor-prefill-kernel", "triton", "--vtensor-decode-kernel", "fa3"]
    with pytest.raises(ValueError, match="--vtensor-decode-kernel fa3 without a GPU: leave it at auto"):
        _parse(model, "--radix-cache-backend", "vtensor", *flags)
    config = VTensorConfig.from_environment()
    assert (config.prefill_kernel, config.decode_kernel) == (Kernel.TRITON, Kernel.FA3)


def test_a_kernel_that_is_none(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse(model, "--radix-cache-backend", "vtensor", "--vtensor-decode-kernel", "fa2")
    assert "'fa2' is no attention kernel; choose auto, triton, fa3" in capsys.readouterr().err


def test_flags_are_in_help() -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    shown = parser.format_help().split()
    for field in fields(VTensorConfig):
        assert f"--vtensor-{field.name.replace('_', '-')}" in shown


def test_flags_without_the_backend_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="--vtensor-page-bytes: this needs --radix-cache-backend vtensor"):
        _parse(model, "--vtensor-page-bytes", "2MiB")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--vtensor-page-bytes", "huge", "2MiB, 64KiB or 4096"),
        ("--vtensor-event-block-tokens", "0", "no number of tokens; write for example 64"),
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
        ("page_size", 16, "--page-size"),
        ("radix_eviction_policy", "lfu", "--radix-eviction-policy"),
        ("schedule_policy", "dfs-weight", "--schedule-policy"),
        ("tp_size", 2, "--tp-size"),
        ("pp_size", 2, "--pp-size"),
        ("dp_size", 2, "--dp-size"),
        ("kv_cache_dtype", "fp8_e5m2", "--kv-cache-dtype"),
        ("kv_cache_dtype", "nvfp4", "--kv-cache-dtype"),
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


@pytest.mark.parametrize("dtype", ["auto", "fp8_e4m3"])
def test_kv_in_the_models_dtype_and_in_float8(model: Path, dtype: str) -> None:
    assert _parse(model, "--radix-cache-backend", "vtensor", "--kv-cache-dtype", dtype).kv_cache_dtype == dtype


@pytest.mark.parametrize("name", ["bf16", "bfloat16"])
def test_kv_in_bfloat16_is_for_models_that_compute_in_it(model: Path, name: str) -> None:
    arguments = ("--radix-cache-backend", "vtensor", "--kv-cache-dtype", name)
    assert _parse(model, *arguments, "--dtype", "bfloat16").kv_cache_dtype == name
    with pytest.raises(ValueError, match=f"--kv-cache-dtype {name}: this model computes in float32; leave it at auto"):
        _parse(model, *arguments, "--dtype", "float32")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "says"),
    [
        (torch.bfloat16, 128, (8, 0), None),
        (torch.float8_e4m3fn, 128, (8, 9), None),
        (torch.float8_e4m3fn, 80, (9, 0), None),
        (torch.float8_e4m3fn, 100, None, None),
        (torch.float8_e4m3fn, 128, (8, 0), r"needs a GPU of compute capability 8\.9.*has 8\.0: choose.*bf16"),
        (torch.float8_e4m3fn, 72, (9, 0), r"heads of 72 elements.*16 bytes.*choose --kv-cache-dtype bf16"),
        (torch.bfloat16, 100, (9, 0), r"heads of 100 elements.*16 bytes.*without virtual tensors"),
        (torch.float8_e5m2, 128, (9, 0), "float8_e5m2 is not supported: choose --kv-cache-dtype fp8_e4m3"),
    ],
)
def test_dtypes_that_the_kernels_read(
    dtype: torch.dtype, head_dim: int, capability: tuple[int, int] | None, says: str | None
) -> None:
    from vt_sglang.adapter.kv_dtype import refuse_kv_dtype

    for dims in ((head_dim, 128), (128, head_dim)):
        with nullcontext() if says is None else pytest.raises(ValueError, match=says):
            refuse_kv_dtype(dtype, dims, capability)


def test_everything_refused_is_named_at_once(model: Path) -> None:
    from sglang.srt.server_args import ServerArgs

    with pytest.raises(ValueError, match=r"(?s)--enable-lmcache.*--page-size"):
        ServerArgs(str(model), device="cpu", radix_cache_backend="vtensor", enable_lmcache=True, page_size=16)


def test_another_pool_by_environment_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_USE_HND_KVCACHE", "1")
    with pytest.raises(ValueError, match="SGLANG_USE_HND_KVCACHE: unset it"):
        _parse(model, "--radix-cache-backend", "vtensor")


@pytest.mark.parametrize(
    ("backend", "chosen", "becomes"),
    [
        ("disabled", True, "disabled"),
        ("breakable", False, "breakable"),
        ("breakable", True, "breakable"),
        ("tc_piecewise", False, "disabled"),
        ("full", True, None),
    ],
)
def test_prefill_graphs(backend: str, chosen: bool, becomes: str | None) -> None:
    """SGLang's default is taken, what it chooses by itself for some models is left out, and what a user asks for is
    refused where it does not work."""
    from vt_sglang.adapter.refusals import limit_prefill_graph

    config = SimpleNamespace(prefill=SimpleNamespace(backend=backend))
    locked = {("prefill", "backend")} if chosen else set()
    arguments = SimpleNamespace(cuda_graph_config=config, _cuda_graph_config_locked=locked)
    if becomes is None:
        with pytest.raises(ValueError, match=r"full.*choose breakable or disabled"):
            limit_prefill_graph(arguments)
    else:
        limit_prefill_graph(arguments)
        assert config.prefill.backend == becomes


def test_dummy_batches_are_known() -> None:
    from vt_sglang.adapter import dummy

    made_up, real = SimpleNamespace(), SimpleNamespace()
    dummy.mark((made_up, None), None, 16)
    assert dummy.is_dummy(made_up)
    assert not dummy.is_dummy(real)


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


@pytest.mark.parametrize("off", [False, True])
def test_sliding_windows_with_a_pool_of_their_own(tmp_path: Path, off: bool) -> None:
    from sglang.srt.server_args import ServerArgs
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING["qwen2"](**_SMALL, is_hybrid_swa=True, sliding_window=24)
    config.architectures = ["Step3p5ForCausalLM"]
    config.save_pretrained(tmp_path)
    options = {"radix_cache_backend": "vtensor", "skip_tokenizer_init": True, "disable_hybrid_swa_memory": off}
    says = (
        "Step3p5ForCausalLM: it keeps a pool of its own for sliding-window layers; add --disable-hybrid-swa-memory, or"
    )
    with nullcontext() if off else pytest.raises(ValueError, match=f"{says} serve it without --radix-cache-backend"):
        ServerArgs(str(tmp_path), device="cpu", **options)


@pytest.mark.parametrize(
    ("dims", "options", "says"),
    [
        ({"head_dim": 16}, {}, None),
        ({"head_dim": 256}, {}, None),
        ({"head_dim": 272}, {}, "Qwen2ForCausalLM: its attention has heads of 272 elements, of which 256 are the most"),
        ({"head_dim": 272}, {"attention_backend": "torch_native"}, None),
        ({"head_dim": 8}, {}, "Qwen2ForCausalLM: its attention has heads of 8 elements, of which 16 are the least"),
        ({"head_dim": 64, "v_head_dim": 288}, {}, "heads of 288 elements, of which 256 are the most; serve it without"),
        ({"head_dim": 100}, {}, "heads of 100 elements in torch.bfloat16 are no multiple of the 16 bytes"),
        ({"head_dim": 64, "v_head_dim": 36}, {}, "heads of 36 elements in torch.bfloat16 are no multiple"),
        ({"head_dim": 72}, {}, None),
        ({"head_dim": 72}, {"kv_cache_dtype": "fp8_e4m3"}, "heads of 72 elements .* choose --kv-cache-dtype bf16"),
        ({"head_dim": 80}, {"kv_cache_dtype": "fp8_e4m3"}, None),
        ({"head_dim": 80}, {"kv_cache_dtype": "fp8_e4m3", "on": (8, 0)}, "float8 needs a GPU of compute capability"),
    ],
)
def test_heads_of_the_models_config_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dims: dict[str, int], options: dict[str, Any], says: str | None
) -> None:
    """They are refused before anything is loaded."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import common
    from transformers import CONFIG_MAPPING

    from vt_sglang.adapter import arguments, kv_dtype

    config = CONFIG_MAPPING["qwen2"](**_SMALL | dims, dtype="bfloat16")
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(tmp_path)
    options = {"model_path": str(tmp_path), "device": "cpu", "radix_cache_backend": "vtensor", **options}
    capability = options.pop("on", (9, 0))
    ServerArgs(**options, skip_tokenizer_init=True)  # torch attends on a CPU, with heads of any size
    for module in (arguments, common):
        monkeypatch.setattr(module, "is_cpu", lambda: False)
    monkeypatch.setattr(kv_dtype.torch.cuda, "get_device_capability", lambda _device: capability)
    with nullcontext() if says is None else pytest.raises(ValueError, match=says):
        ServerArgs(**options, skip_tokenizer_init=True)


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


def test_sharing_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, shared in (("auto", True), ("1", True), ("Off", False), ("0", False)):
        monkeypatch.setenv("VTENSOR_SHARED_DECODE", text)
        assert VTensorConfig.from_environment().shared_decode is shared
    monkeypatch.setenv("VTENSOR_SHARED_DECODE", "always")
    with pytest.raises(ValueError, match="VTENSOR_SHARED_DECODE: 'always' is neither auto nor off"):
        VTensorConfig.from_environment()


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", ""])
def test_seconds_that_cannot_be(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VTENSOR_IDLE_TRIM", text)
    with pytest.raises(ValueError, match=r"VTENSOR_IDLE_TRIM: .* is no number of seconds; write for example 60"):
        VTensorConfig.from_environment()
