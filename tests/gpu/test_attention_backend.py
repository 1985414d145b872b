# SPDX-License-Identifier: Apache-2.0
"""The attention backend over real virtual tensors on a GPU: prefill, decode, and decode replayed from a CUDA graph."""

import itertools
from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 8, 2, 128, 2
K_SCALE, V_SCALE = 0.5, 2.0
"""Of float8: powers of two, by which one divides without rounding."""

FLOAT8 = torch.float8_e4m3fn
needs_float8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with float8"
)


@pytest.fixture(params=["triton", "fa3", "auto"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """For prefill and for decode. `auto`: in prefill one of the other two, batch by batch, and the project's kernel in
    decode: on Hopper the one for heads of 128 in bfloat16, and Triton's for float8."""
    if request.param != "triton" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("FlashAttention-3 needs a Hopper GPU")
    monkeypatch.setenv("VTENSOR_PREFILL_KERNEL", request.param)
    monkeypatch.setenv("VTENSOR_DECODE_KERNEL", request.param)
    monkeypatch.setenv("VTENSOR_SHARED_DECODE", "auto")
    return str(request.param)


@pytest.fixture(
    params=[
        pytest.param((LAYERS, torch.bfloat16), id="1024 tokens a page"),
        pytest.param((64, torch.bfloat16), id="32 tokens a page"),
        pytest.param((LAYERS, FLOAT8), id="float8, 2048 tokens a page", marks=needs_float8),
        pytest.param((64, FLOAT8), id="float8, 64 tokens a page", marks=needs_float8),
    ]
)
def backend(request: pytest.FixtureRequest, kernel: str) -> Any:
    """Large tokens, so that the page after a request's last is within a tile and not mapped; and small ones."""
    from sglang.srt.layers.radix_attention import RadixAttention

    from vt_sglang._core import KVCache
    from vt_sglang.adapter.gpu_attention import GpuAttention
    from vt_sglang.adapter.kv_pool import VTensorKVPool
    from vt_sglang.layout import KVLayout

    layer_count, dtype = request.param
    if dtype == FLOAT8 and kernel != "triton":
        pytest.skip("FlashAttention-3 takes no float8 beside queries in bfloat16")
    layout = KVLayout(
        layers=layer_count, kv_heads=KV_HEADS, head_dim=HEAD_DIM, v_head_dim=HEAD_DIM, itemsize=dtype.itemsize
    )
    core = KVCache(
        driver="cuda", page_bytes=0, token_bytes=layout.token_bytes, slots=8, slot_tokens=9000, budget_pages=1000
    )
    core.set_stream(torch.cuda.current_stream().cuda_stream)
    pool = VTensorKVPool(core, layout, dtype=dtype, device="cuda", start_layer=0, end_layer=layer_count - 1)
    layers = [
        RadixAttention(HEADS, HEAD_DIM, HEAD_DIM**-0.5, KV_HEADS, layer_id=0),
        RadixAttention(HEADS, HEAD_DIM, HEAD_DIM**-0.5, KV_HEADS, layer_id=1, sliding_window_size=100),
    ]
    if dtype == FLOAT8:
        # A checkpoint's scales are tensors; those of --quantization-param-path are numbers.
        layers[0].k_scale, layers[0].v_scale = torch.tensor([K_SCALE, V_SCALE], device="cuda").unbind()
        layers[1].k_scale, layers[1].v_scale = K_SCALE, V_SCALE
    arguments = SimpleNamespace(enable_mixed_chunk=False)
    made = GpuAttention(
        SimpleNamespace(token_to_kv_pool=pool, model=torch.nn.ModuleList(layers), server_args=arguments)
    )
    made.layers = layers
    return made


class Sequence:
    """What a request's K and V must be, kept beside the arena."""

    def __init__(self, backend: Any, slot: int) -> None:
        self.slot = slot
        self._float8 = backend.pool.dtype == FLOAT8
        self.k = [torch.empty(0, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")] * LAYERS
        self.v = list(self.k)

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        if self._float8:  # what is left of them; bfloat16 holds it
            k = ((k / K_SCALE).to(FLOAT8).float() * K_SCALE).bfloat16()
            v = ((v / V_SCALE).to(FLOAT8).float() * V_SCALE).bfloat16()
        self.k[layer] = torch.cat([self.k[layer], k])
        self.v[layer] = torch.cat([self.v[layer], v])

    def expected(self, q: torch.Tensor, layer: int) -> torch.Tensor:
        k, v = self.k[layer].double(), self.v[layer].double()
        k, v = k.repeat_interleave(HEADS // KV_HEADS, 1), v.repeat_interleave(HEADS // KV_HEADS, 1)
        scores = torch.einsum("qhd,khd->hqk", q.double(), k) * HEAD_DIM**-0.5
        positions = torch.arange(len(k) - len(q), len(k), device="cuda")[:, None]
        columns = torch.arange(len(k), device="cuda")[None, :]
        hidden = columns > positions
        if layer == 1:
            hidden |= columns < positions - 100
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


def _random(tokens: int, heads: int) -> torch.Tensor:
    return torch.randn(tokens, heads, HEAD_DIM, device="cuda").bfloat16()


def _locations(backend: Any, sequences: list[Sequence], starts: list[int], ends: list[int]) -> torch.Tensor:
    rows = backend.pool.core.slot_tokens
    parts = [
        torch.arange(it.slot * rows + start, it.slot * rows + end)
        for it, start, end in zip(sequences, starts, ends, strict=True)
    ]
    return torch.cat(parts).cuda()


def _batch(backend: Any, sequences: list[Sequence], starts: list[int], ends: list[int], *, decode: bool) -> Any:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    new = [end - start for start, end in zip(starts, ends, strict=True)]
    return SimpleNamespace(
        forward_mode=ForwardMode.DECODE if decode else ForwardMode.EXTEND,
        req_pool_indices=torch.tensor([it.slot for it in sequences], device="cuda"),
        seq_lens=torch.tensor(ends, device="cuda"),
        out_cache_loc=_locations(backend, sequences, starts, ends),
        extend_seq_lens=torch.tensor(new, device="cuda"),
        extend_seq_lens_cpu=new,
        extend_prefix_lens_cpu=starts,
    )


def _check(output: torch.Tensor, sequences: list[Sequence], q: torch.Tensor, new: list[int], layer: int) -> None:
    for it, part, rows in zip(sequences, q.split(new), output.view(-1, HEADS, HEAD_DIM).split(new), strict=True):
        expected = it.expected(part, layer)
        error = (rows.double() - expected).abs().max()
        assert error <= 1.6e-2 * expected.abs().max().clamp(min=1.0), (it.slot, layer, error)


def _run(backend: Any, sequences: list[Sequence], starts: list[int], ends: list[int], *, decode: bool) -> None:
    new = [end - start for start, end in zip(starts, ends, strict=True)]
    batch = _batch(backend, sequences, starts, ends, decode=decode)
    backend.init_forward_metadata(batch)
    for index, layer in enumerate(backend.layers):
        q, k, v = _random(sum(new), HEADS), _random(sum(new), KV_HEADS), _random(sum(new), KV_HEADS)
        for it, its_k, its_v in zip(sequences, k.split(new), v.split(new), strict=True):
            it.extend(index, its_k, its_v)
        forward = backend.forward_decode if decode else backend.forward_extend
        output = forward(q.flatten(1), k.flatten(1), v.flatten(1), layer, batch)
        _check(output, sequences, q, new, index)


def test_chunks_and_decode(backend: Any) -> None:
    """Prefill in chunks, with and without a prefix, then decode, in one ragged batch."""
    core = backend.pool.core
    lengths = [(3000, 3100, 3103), (1, 700, 703), (64, 65, 68)]
    guard = max(backend.pool.prefill_guard_tokens, backend.pool.decode_guard_tokens)
    sequences = [Sequence(backend, core.bind(None, 0, last, guard)[0]) for *_, last in lengths]
    _run(backend, sequences, [0, 0, 0], [it[0] for it in lengths], decode=False)
    _run(backend, sequences, [it[0] for it in lengths], [it[1] for it in lengths], decode=False)
    for step in range(3):
        starts = [it[1] + step for it in lengths]
        _run(backend, sequences, starts, [start + 1 for start in starts], decode=True)


def test_the_kernel_changes_between_chunks(backend: Any, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one kernel stored and computed the other goes on from; guards are there whichever it is."""
    from vt_sglang.adapter import fa3, prefill, prefill_choice

    if kernel != "auto":
        pytest.skip("there is nothing to choose")
    assert isinstance(backend._prefill, prefill_choice.ChosenPrefill)
    assert backend.pool.prefill_guard_tokens == fa3.GUARD_TOKENS
    attended = []
    for kind in (prefill.TritonPrefill, fa3.Fa3Prefill):

        def noted(self: Any, *args: Any, kind: type = kind, original: Any = kind.forward) -> None:
            attended.append((kind.__name__, args[2].layer_id))
            original(self, *args)

        monkeypatch.setattr(kind, "forward", noted)
    most = prefill_choice.MOST_STEPS
    core, guard = backend.pool.core, backend.pool.prefill_guard_tokens
    sequences = [Sequence(backend, core.bind(None, 0, last, guard)[0]) for last in (1500, 400)]
    borders = [(0, 0), (700, 130), (1100, 200), (1300, 399), (1500, 400)]
    for step, (starts, ends) in enumerate(itertools.pairwise(borders)):
        monkeypatch.setattr(prefill_choice, "MOST_STEPS", 0 if step % 2 else most)
        _run(backend, sequences, list(starts), list(ends), decode=False)
        chosen = "Fa3Prefill" if step % 2 else "TritonPrefill"
        assert attended[-2:] == [(chosen, 0), ("Fa3Prefill", 1)]  # the second layer has a window


class _NoIndices(TorchDispatchMode):
    """Refuses operations that look up by index, and tensors of so many integers that they might be tokens' indices."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("index", "index_select", "gather", "take", "embedding", "repeat_interleave"), name
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point():
                assert tensor.numel() < self.most or tensor.dtype == torch.uint8, (name, tensor.shape)
        self.seen += 1
        return result


def test_no_index_of_tokens_is_built_or_read(backend: Any) -> None:
    """The backend was made without SGLang's table, and makes none of its own: all that it has of a batch is a few
    numbers for each request and tile, and where new tokens are stored."""
    core, guard = backend.pool.core, max(backend.pool.prefill_guard_tokens, backend.pool.decode_guard_tokens)
    sequences = [Sequence(backend, core.bind(None, 0, 4100, guard)[0]) for _ in range(2)]
    _run(backend, sequences, [0, 0], [4000, 4000], decode=False)
    for decode, new in ((False, 40), (True, 1)):
        batch = _batch(backend, sequences, [4000, 4000], [4000 + new] * 2, decode=decode)
        forward = backend.forward_decode if decode else backend.forward_extend
        q, k, v = (_random(2 * new, heads).flatten(1) for heads in (HEADS, KV_HEADS, KV_HEADS))
        with _NoIndices(8000) as watched:
            backend.init_forward_metadata(batch)
            for layer in backend.layers:
                forward(q, k, v, layer, batch)
        assert watched.seen > 0


class _NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for the GPU: whatever torch synchronises for, and copies from memory that is not
    pinned, for which the driver does."""

    def __enter__(self) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        torch.cuda.set_sync_debug_mode("default")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            if result.is_cuda and not source.is_cuda:
                assert source.is_pinned(), (name, source.shape)
        return result


def test_no_step_waits_for_the_gpu(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts long and short, chunks, mixed batches and decode, eagerly and from a graph, from the host's plan to the
    last layer."""
    from vt_sglang.adapter import mixed

    captured = Captured(backend, 4)
    family = Family(backend, 700, [1, 64, 130])
    other = Sequence(backend, family.core.bind(None, 0, 700, family.guard)[0])
    sequences, pool = [other, *family.members], backend.pool
    monkeypatch.setattr(mixed, "LEAST_SAVED_BYTES", 1)
    steps = [(0, 600, False), (600, 604, False), (604, 604, True)]
    for _ in range(2):  # what is only made once, such as buffers and programs, may be waited for
        for start, end, decode in steps:
            decoding = [length + 1 for length in family.lengths]
            members = family.members if decode else sequences
            starts = family.lengths if decode else [start, *family.lengths]
            ends = decoding if decode else [end, *decoding]
            batch = _batch(backend, members, starts, ends, decode=decode)
            new = sum(ends) - sum(starts)
            q, k, v = (_random(new, heads).flatten(1) for heads in (HEADS, KV_HEADS, KV_HEADS))
            pool.batch_slots = np.array([it.slot for it in members])
            pool.batch_decoding = 0 if decode else len(family.members)
            forward = backend.forward_decode if decode else backend.forward_extend
            torch.cuda.synchronize()
            with _NoWaiting():
                backend.init_forward_metadata(batch)
                for layer in backend.layers:
                    forward(q, k, v, layer, batch)
            family.lengths = decoding
        torch.cuda.synchronize()
        with _NoWaiting():
            backend.init_forward_metadata_out_graph(captured.batch)
            captured.graph.replay()


class Captured:
    """A decode step of the first layer in a CUDA graph, captured on the padding slot."""

    def __init__(self, backend: Any, rows: int) -> None:
        self.backend = backend
        self.batch = _batch(backend, [Sequence(backend, 0)] * rows, [0] * rows, [1] * rows, decode=True)
        self.batch.seq_lens.fill_(backend.get_cuda_graph_seq_len_fill_value())
        backend.init_cuda_graph_state(rows, rows)
        self.q, self.k, self.v = _random(rows, HEADS), _random(rows, KV_HEADS), _random(rows, KV_HEADS)
        backend.init_forward_metadata_out_graph(self.batch, in_capture=True)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self._forward()
        stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self._forward()

    def _forward(self) -> torch.Tensor:
        q, k, v = (it.flatten(1) for it in (self.q, self.k, self.v))
        self.backend.init_forward_metadata_in_graph(self.batch)
        return self.backend.forward_decode(q, k, v, self.backend.layers[0], self.batch)

    def check(self, sequences: list[Sequence], lengths: list[int]) -> None:
        """Replay it for a token more of each sequence, and rows behind them whose slot was never bound."""
        count, batch = len(sequences), self.batch
        live = _batch(self.backend, sequences, lengths, [length + 1 for length in lengths], decode=True)
        batch.req_pool_indices.fill_(7)
        batch.seq_lens.fill_(self.backend.get_cuda_graph_seq_len_fill_value())
        batch.out_cache_loc.zero_()
        for name in ("req_pool_indices", "seq_lens", "out_cache_loc"):
            getattr(batch, name)[:count] = getattr(live, name)
        for tensor in (self.q, self.k, self.v):
            tensor.copy_(torch.randn_like(tensor))
        for row, it in enumerate(sequences):
            it.extend(0, self.k[row : row + 1].clone(), self.v[row : row + 1].clone())
        self.backend.init_forward_metadata_out_graph(batch)
        self.graph.replay()
        _check(self.output[:count], sequences, self.q[:count], [1] * count, 0)


def test_decode_from_a_graph(backend: Any) -> None:
    """Captured on the padding slot, replayed for requests and padded rows whose slots are not mapped."""
    captured = Captured(backend, 4)
    guard = max(backend.pool.prefill_guard_tokens, backend.pool.decode_guard_tokens)
    sequences = [Sequence(backend, backend.pool.core.bind(None, 0, length, guard)[0]) for length in (5000, 40)]
    prefilled = [4990, 38]
    _run(backend, sequences, [0, 0], prefilled, decode=False)
    for step in range(2):
        captured.check(sequences, [length + step for length in prefilled])


def test_a_sequence_of_nan_reaches_no_other(backend: Any, kernel: str) -> None:
    """What a slot maps behind its request may be another's page: one that overflowed there must not be felt."""
    core = backend.pool.core
    guard = max(backend.pool.prefill_guard_tokens, backend.pool.decode_guard_tokens)
    first = Sequence(backend, core.bind(None, 0, 600, guard)[0])
    batch = _batch(backend, [first], [0], [600], decode=False)
    backend.init_forward_metadata(batch)
    for layer in backend.layers:
        q, k, v = _random(600, HEADS), _random(600, KV_HEADS), _random(600, KV_HEADS)
        k.fill_(float("nan"))
        v.fill_(float("nan"))
        v[::2] = float("inf")
        output = backend.forward_extend(q.flatten(1), k.flatten(1), v.flatten(1), layer, batch)
        assert output.isnan().any() == (kernel == "triton"), "stored finite where FlashAttention-3 reads"
    core.release(first.slot)
    again = Sequence(backend, core.bind(None, 0, 20, guard)[0])
    assert again.slot == first.slot
    _run(backend, [again], [0], [10], decode=False)
    _run(backend, [again], [10], [11], decode=True)


def test_a_made_up_batch_reads_nothing(backend: Any) -> None:
    """As SGLang captures prefill: on slots that map nothing, at lengths that they do not have."""
    from vt_sglang.adapter import dummy

    batch = _batch(backend, [Sequence(backend, 0), Sequence(backend, 5)], [0, 0], [4000, 100], decode=False)
    batch.out_cache_loc.zero_()
    dummy.mark((batch, None), None)
    backend.init_forward_metadata(batch)
    q, k, v = _random(4100, HEADS), _random(4100, KV_HEADS), _random(4100, KV_HEADS)
    output = backend.forward_extend(q.flatten(1), k.flatten(1), v.flatten(1), backend.layers[0], batch)
    torch.cuda.synchronize()
    assert not output.any()


class Family:
    """Requests that share a recorded prefix, bound to its pages."""

    def __init__(self, backend: Any, shared: int, owns: list[int]) -> None:
        self.backend, self.core, self.shared = backend, backend.pool.core, shared
        self.guard = max(backend.pool.prefill_guard_tokens, backend.pool.decode_guard_tokens)
        self.ids = array("q", range(shared))
        trunk = Sequence(backend, self.core.bind(None, 0, shared, self.guard)[0])
        _run(backend, [trunk], [0], [shared], decode=False)
        self.core.record(trunk.slot, self.ids, shared)
        self.core.release(trunk.slot)
        self.members = []
        for own in owns:
            node, matched = self.core.match(None, self.ids)
            assert matched == shared
            self.core.lock(node)
            member = Sequence(backend, self.core.bind(None, node, shared + own + 20, self.guard)[0])
            self.core.unlock(node)
            member.k, member.v = list(trunk.k), list(trunk.v)
            self.members.append(member)
        self.lengths = [shared + own for own in owns]
        _run(backend, self.members, [shared] * len(owns), self.lengths, decode=False)

    def slots(self) -> np.ndarray:
        return np.array([it.slot for it in self.members])


def test_what_is_shared_is_read_once(backend: Any, kernel: str) -> None:
    """Eagerly, while requests leave; the plan tells what need not be read, and FlashAttention-3 shares nothing."""
    family = Family(backend, 700, [1, 64, 130, 300])
    while len(family.members) > 1:
        backend.pool.batch_slots = family.slots()
        for _ in range(2):
            ends = [length + 1 for length in family.lengths]
            _run(backend, family.members, family.lengths, ends, decode=True)
            saved = 700 * (len(family.members) - 1) / LAYERS  # the other layer has a window
            assert backend.pool.batch_saved_tokens == (0 if kernel == "fa3" else saved)
            family.lengths = ends
        family.core.release(family.members.pop(0).slot)
        family.lengths.pop(0)


def test_what_is_shared_is_read_once_from_a_graph(backend: Any) -> None:
    """The same replayed: plans come to where the graph finds them, for batches smaller than it was captured for."""
    captured = Captured(backend, 6)
    family = Family(backend, 700, [5, 64, 130])
    for step in range(8):
        if step in (3, 6):
            family.core.release(family.members.pop().slot)
            family.lengths.pop()
        backend.pool.batch_slots = family.slots()
        captured.check(family.members, family.lengths)
        family.lengths = [length + 1 for length in family.lengths]


def test_what_is_shared_is_read_once_beside_prefill(backend: Any, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed batches, whose requests that prefill bring one token or many, between plain
    decode of the same requests; in one of them they share too little."""
    from vt_sglang.adapter import mixed

    pool = backend.pool
    family = Family(backend, 700, [1, 64, 130])
    others = [Sequence(backend, family.core.bind(None, 0, length + 20, family.guard)[0]) for length in (600, 40)]
    done = [0, 0]
    saved = 0 if kernel == "fa3" else 700 * 2 / LAYERS  # the other layer has a window
    for new, least in (((500, 1), 1), ((1, 30), 1), ((64, 1), 2**40), ((3, 3), 1)):
        monkeypatch.setattr(mixed, "LEAST_SAVED_BYTES", least)
        ends = [start + count for start, count in zip(done, new, strict=True)]
        sequences = [*others, *family.members]
        pool.batch_slots = torch.tensor([it.slot for it in sequences]).numpy()
        pool.batch_decoding, pool.batch_saved_tokens = len(family.members), 0.0
        starts = [*done, *family.lengths]
        family.lengths = [length + 1 for length in family.lengths]
        _run(backend, sequences, starts, [*ends, *family.lengths], decode=False)
        assert pool.batch_saved_tokens == (saved if least == 1 else 0)
        done = ends
        pool.batch_slots, pool.batch_decoding = family.slots(), 0
        starts, family.lengths = family.lengths, [length + 1 for length in family.lengths]
        _run(backend, family.members, starts, family.lengths, decode=True)
        assert pool.batch_saved_tokens == saved
