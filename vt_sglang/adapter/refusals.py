# SPDX-License-Identifier: Apache-2.0
"""What does not work on virtual tensors is refused when a server starts, with what to do instead."""

import os
from collections.abc import Callable
from typing import Any

from vt_sglang.adapter.head_dims import refused_head_dims
from vt_sglang.adapter.plugin import BACKEND
from vt_sglang.config import Kernel, VTensorConfig
from vt_sglang.triton_kernels.checks import LEAST_HEAD_DIM, MOST_HEAD_DIM

ATTENTION_BACKENDS = (BACKEND, "torch_native")
"""Backends known to read virtual tensors rightly."""

PREFILL_GRAPHS = ("breakable", "disabled")
"""Kinds of CUDA graph in which attention runs outside: its work is dealt out anew for each batch."""

# (attribute of ServerArgs, its flag, how it is told that the feature is wanted, why it cannot be or what to do).
_SET: Callable[[Any], bool] = bool
_OPTIONS: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ("disable_radix_cache", "--disable-radix-cache", _SET, "virtual tensors are shared through the radix tree"),
    ("enable_hierarchical_cache", "--enable-hierarchical-cache", _SET, "there is no host tier behind the pages"),
    ("enable_lmcache", "--enable-lmcache", _SET, "it brings its own cache"),
    ("enable_flexkv", "--enable-flexkv", _SET, "it brings its own cache"),
    ("enable_hisparse", "--enable-hisparse", _SET, "it brings its own pool"),
    ("enable_unified_memory", "--enable-unified-memory", _SET, "it brings its own pool"),
    ("enable_page_major_kv_layout", "--enable-page-major-kv-layout", _SET, "virtual tensors have their own layout"),
    ("prefill_only_disable_kv_cache", "--prefill-only-disable-kv-cache", _SET, "there is no KV cache then"),
    ("enable_streaming_session", "--enable-streaming-session", _SET, "sessions hold token slots of their own"),
    ("enable_session_radix_cache", "--enable-session-radix-cache", _SET, "it needs SGLang's own tree"),
    ("disaggregation_mode", "--disaggregation-mode", lambda mode: mode != "null", "it transfers KV; leave it out"),
    ("encoder_only", "--encoder-only", _SET, "there is no KV cache then"),
    ("speculative_algorithm", "--speculative-algorithm", _SET, "draft tokens are not allocated by position yet"),
    ("dllm_algorithm", "--dllm-algorithm", _SET, "diffusion models rewrite their KV"),
    ("enable_pdmux", "--enable-pdmux", _SET, "it splits the forward stream"),
    ("enable_two_batch_overlap", "--enable-two-batch-overlap", _SET, "it splits batches below the attention backend"),
    ("enable_memory_saver", "--enable-memory-saver", _SET, "it cannot pause the pages"),
    ("enable_return_routed_experts", "--enable-return-routed-experts", _SET, "its buffer is sized by token slots"),
    ("enable_return_indexer_topk", "--enable-return-indexer-topk", _SET, "its buffer is sized by token slots"),
    ("enable_deterministic_inference", "--enable-deterministic-inference", _SET, "its kernels read token slots"),
    ("enable_torch_compile", "--enable-torch-compile", _SET, "what it compiles was never run over virtual tensors"),
    ("enable_mis", "--enable-mis", _SET, "its masks are not supported"),
    ("is_embedding", "--is-embedding", _SET, "only generation is supported"),
    ("elastic_ep_backend", "--elastic-ep-backend", _SET, "pools would have to be resized"),
    ("page_size", "--page-size", lambda size: size not in (None, 1), "sharing is token-granular; leave it at 1"),
    ("radix_eviction_policy", "--radix-eviction-policy", lambda policy: policy != "lru", "leave it at lru"),
    ("schedule_policy", "--schedule-policy", lambda policy: policy == "dfs-weight", "use lpm or fcfs"),
    ("tp_size", "--tp-size", lambda size: size != 1, "one device a server for now; leave it at 1"),
    ("pp_size", "--pp-size", lambda size: size != 1, "one device a server for now; leave it at 1"),
    ("dp_size", "--dp-size", lambda size: size != 1, "start one server a device instead"),
    ("dcp_size", "--dcp-size", lambda size: size != 1, "one device a server for now; leave it at 1"),
    ("attn_cp_size", "--attn-cp-size", lambda size: size != 1, "one device a server for now; leave it at 1"),
    ("nnodes", "--nnodes", lambda nodes: nodes != 1, "one node a server for now; leave it at 1"),
    ("enable_dp_attention", "--enable-dp-attention", _SET, "one device a server for now"),
    (
        "kv_cache_dtype",
        "--kv-cache-dtype",
        lambda dtype: dtype not in ("auto", "bf16", "bfloat16", "fp8_e4m3"),
        "KV is kept in the model's dtype or in float8; leave it at auto, or choose fp8_e4m3",
    ),
)

# Environment variables that put another memory pool or layout in place.
_VARIABLES = ("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", "SGLANG_USE_HND_KVCACHE")


def refuse_options(server_args: Any) -> None:
    """ValueError that names every option, with its flag, that does not go with virtual tensors."""
    refused = [
        f"{flag}: {reason}" + ("; leave the flag out" if is_wanted is _SET else "")
        for attribute, flag, is_wanted, reason in _OPTIONS
        if is_wanted(getattr(server_args, attribute))
    ]
    refused += [
        f"--{attribute.replace('_', '-')} {name}: leave it out, or choose {' or '.join(ATTENTION_BACKENDS)}"
        for attribute in ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
        if (name := getattr(server_args, attribute)) is not None and name not in ATTENTION_BACKENDS
    ]
    if server_args.device not in (None, "cpu", "cuda"):
        refused.append(f"--device {server_args.device}: choose cpu or cuda")
    refused += [f"{name}: unset it; it puts another pool in place" for name in _VARIABLES if _is_on(name)]
    _refuse(refused)


def refuse_kernels(config: VTensorConfig) -> None:
    """ValueError if a GPU's attention kernel is asked for on a CPU, where torch attends."""
    wanted = {"--vtensor-prefill-kernel": config.prefill_kernel, "--vtensor-decode-kernel": config.decode_kernel}
    _refuse(
        [
            f"{flag} {kernel} without a GPU: leave it at auto"
            for flag, kernel in wanted.items()
            if kernel is not Kernel.AUTO
        ]
    )


def limit_prefill_graph(server_args: Any) -> None:
    """Prefill is captured in SGLang's default kind of CUDA graph, or not at all. ValueError if another was chosen."""
    prefill = server_args.cuda_graph_config.prefill
    if prefill.backend in PREFILL_GRAPHS:
        return
    if ("prefill", "backend") in server_args._cuda_graph_config_locked:
        _refuse([f"CUDA graphs for prefill ({prefill.backend}): choose {' or '.join(PREFILL_GRAPHS)}"])
    prefill.backend = "disabled"


def refuse_model(model_config: Any, attention_backend: str = BACKEND) -> None:
    """ValueError that says what a model needs and virtual tensors cannot do, as far as its config tells.

    Args:
        attention_backend: what attends; heads of any size suit another one than the project's.
    """
    from sglang.srt.configs.hybrid_arch import linear_attn_model_spec, mambaish_config
    from sglang.srt.configs.model_config import AttentionArch
    from sglang.srt.utils.common import is_cpu

    refused = []
    if model_config.attention_arch != AttentionArch.MHA:
        refused.append("its attention is MLA; only MHA, GQA and MQA have K and V of their own")
    has_own_backends = "GptOssForCausalLM" in (model_config.hf_config.architectures or ())
    if has_own_backends:
        refused.append("SGLang runs it only on attention backends of its own")
    if is_cpu() and (cap := getattr(model_config.hf_text_config, "attn_logit_softcapping", None)):
        refused.append(f"its attention logits are capped at {cap:g}, which only the GPU's kernels do")
    if mambaish_config(model_config) is not None or linear_attn_model_spec(model_config) is not None:
        refused.append("it keeps state-space or linear-attention state besides KV")
    if model_config.is_encoder_decoder:
        refused.append("it is an encoder-decoder model")
    if model_config.attention_chunk_size is not None:
        refused.append("its attention is chunked")
    if not model_config.is_generation:
        refused.append("it does not generate")
    if model_config.attention_arch == AttentionArch.MHA and attention_backend == BACKEND and not is_cpu():
        dims = model_config.head_dim, model_config.v_head_dim
        outside = refused_head_dims(*dims, least=LEAST_HEAD_DIM, most=MOST_HEAD_DIM)
        refused += [f"its attention has {reason}" for reason in outside]
    instead = f"serve it without --radix-cache-backend {BACKEND}"
    refused = [f"{reason}; {instead}" for reason in refused]
    if model_config.is_hybrid_swa and not has_own_backends:
        pool = "it keeps a pool of its own for sliding-window layers"
        refused.append(f"{pool}; add --disable-hybrid-swa-memory, or {instead}")
    architectures = ", ".join(model_config.hf_config.architectures or ["this model"])
    _refuse([f"{architectures}: {reason}" for reason in refused])


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _refuse(refused: list[str]) -> None:
    if refused:
        lines = "".join(f"\n  {line}" for line in refused)
        raise ValueError(f"--radix-cache-backend {BACKEND} does not go with:{lines}")
