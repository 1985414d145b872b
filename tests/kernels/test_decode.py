# SPDX-License-Identifier: Apache-2.0
"""Decode attention against float64: in Triton's interpreter without a GPU, compiled with one."""

from dataclasses import dataclass, field

import pytest
import torch
from arena import CUDA, DEVICE, DTYPES, SERVED_DTYPES, Arena, assert_close
from reference import attend
from vt_sglang.triton_kernels import decode_hopper
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.decode_plan import DecodeConfig, DecodePlan
from vt_sglang.triton_kernels.tiles import LEFT_ONE_IN


@dataclass
class Case:
    """A batch of requests with one new token each."""

    lengths: list[int]
    kv_heads: int = 2
    group: int = 4
    head_dim: int = 64
    v_head_dim: int | None = None
    dtype: torch.dtype = torch.float16
    kv_dtype: torch.dtype | None = None
    options: dict[str, object] = field(default_factory=dict)
    fused: bool = False
    """Whether K and V of the new tokens lie between the queries of one and the next."""

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(sum(self.lengths) + self.head_dim)
        batch, heads = len(self.lengths), self.kv_heads * self.group
        v_dim = self.v_head_dim or self.head_dim
        self.q = torch.randn(batch, heads, self.head_dim, generator=generator).to(self.dtype)
        self.arena = Arena(
            self.lengths,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            v_head_dim=v_dim,
            dtype=self.kv_dtype or self.dtype,
            slot_tokens=max(700, *self.lengths),
            generator=generator,
        )
        self.out = torch.full((batch, heads, v_dim), float("nan"), dtype=self.dtype, device=DEVICE)

    def run(
        self,
        *,
        workers: int = 5,
        spare: int = 0,
        window: int = -1,
        tile: int | None = 16,
        hopper: bool = False,
        layers: int = 1,
    ) -> None:
        """spare: multiprocessors that no worker has. tile: None: as is chosen. layers: so often, one by one."""
        config = None if tile is None else DecodeConfig(tile, 4, 2, 1)
        plan = DecodePlan(
            max_batch=len(self.lengths) + 3,
            kv_heads=self.kv_heads,
            group=self.group,
            head_dim=self.head_dim,
            v_head_dim=self.arena.v.shape[-1],
            itemsize=self.arena.k.element_size(),
            multiprocessors=workers * self.kv_heads + spare,
            device=DEVICE,
            window=window,
            config=decode_hopper.CONFIG if hopper else config,
        )
        plan.partial.fill_(float("nan"))
        plan.partial_lse.fill_(float("nan"))
        lengths = torch.tensor(self.lengths, device=DEVICE)
        slots, scaling = self.arena.slots.to(DEVICE), self.head_dim**-0.5
        plan.update(slots, lengths)
        options = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in self.options.items()}
        query, keys, values = self.q.to(DEVICE), self.arena.k, self.arena.v
        if self.fused:
            query = torch.nn.functional.pad(query, (0, 0, 0, 2 * self.kv_heads), value=float("nan"))[
                :, : query.shape[1]
            ]
        for _ in range(layers):
            self.out.fill_(float("nan"))
            decode_attention(query, keys, values, self.out, slots, lengths, plan, scaling=scaling, **options)
        for row, length in enumerate(self.lengths):
            if length == 0:
                assert not self.out[row].any()
                continue
            keys, values = self.arena.request(row, length)
            expected = attend(
                self.q[row : row + 1],
                keys * self.options.get("k_scale", 1.0),
                values * self.options.get("v_scale", 1.0),
                scaling=scaling,
                window=window,
                logit_cap=self.options.get("logit_cap", 0.0),
                sinks=self.options.get("sinks"),
            )[0]
            assert_close(self.out[row], expected, self.dtype, f"request {row} of {length} tokens")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workers", [1, 3, 40])
def test_ragged_lengths(dtype: torch.dtype, workers: int) -> None:
    """1 to past several tiles, at tile borders, with idle requests between: whole, cut once, cut into many."""
    Case([1, 15, 0, 16, 17, 300, 0, 31, 32, 33, 130, 2], dtype=dtype).run(workers=workers)


@pytest.mark.parametrize("length", [1, 16, 17, 255, 256, 257, 640])
def test_one_request(length: int) -> None:
    Case([length]).run(workers=7)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (2, 4), (1, 8), (3, 5), (1, 20)])
def test_heads(head_dim: int, kv_heads: int, group: int) -> None:
    Case([5, 90, 33], kv_heads=kv_heads, group=group, head_dim=head_dim).run()


@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("batch", [1, 140])
def test_the_configurations_that_are_chosen(head_dim: int, batch: int) -> None:
    """Of few and of many sequences, with small and large heads; many parts of one request."""
    lengths = [690, *range(1, batch)]
    Case(lengths, head_dim=head_dim).run(workers=9, tile=None)


@pytest.mark.parametrize("dtype", SERVED_DTYPES)
@pytest.mark.parametrize("head_dim", [80, 96, 128])
@pytest.mark.parametrize("workers", [2, 7])
def test_what_servers_run(head_dim: int, dtype: torch.dtype, workers: int) -> None:
    """The configuration that is chosen, with requests that end before, at and past the borders of its tiles of 128
    tokens; by few workers, and by about one for each tile."""
    Case([1, 127, 128, 129, 257], head_dim=head_dim, dtype=dtype).run(workers=workers, tile=None)


def test_queries_of_a_fused_projection() -> None:
    Case([5, 90, 33], fused=True).run()


def test_values_of_another_width() -> None:
    Case([5, 90, 33], head_dim=96, v_head_dim=64).run()


@pytest.mark.parametrize("window", [0, 1, 15, 16, 40, 1000])
@pytest.mark.parametrize("workers", [2, 11])
def test_sliding_window(window: int, workers: int) -> None:
    Case([1, 16, 17, 41, 300, 57]).run(window=window, workers=workers)


def test_logit_cap() -> None:
    Case([1, 40, 300], options={"logit_cap": 1.5}).run()


@pytest.mark.parametrize("workers", [1, 11])
def test_sinks(workers: int) -> None:
    Case([1, 40, 300], options={"sinks": torch.linspace(-2, 3, 8)}).run(workers=workers)


def test_float8_with_scales() -> None:
    scales = {"k_scale": torch.tensor([0.5]), "v_scale": torch.tensor([2.0])}
    Case([1, 40, 300], kv_dtype=torch.float8_e4m3fn, options=scales).run()


def test_large_scores() -> None:
    """The softmax of scores beyond the reach of float16's and float32's exponential."""
    case = Case([1, 40, 300])
    case.q *= 60
    case.run()


def test_a_plan_serves_smaller_batches() -> None:
    """What an earlier, larger batch left in the plan does not show."""
    plan = DecodePlan(
        max_batch=8,
        kv_heads=2,
        group=4,
        head_dim=64,
        v_head_dim=64,
        itemsize=2,
        multiprocessors=12,
        device=DEVICE,
        config=DecodeConfig(16, 4, 2, 1),
    )
    slots = torch.tensor([3, 1, 2, 5, 4, 6, 8, 7, 9], device=DEVICE)
    plan.update(slots[:8], torch.tensor([100] * 8, device=DEVICE))
    assert plan.ends.tolist() == [7, 14, 21, 28, 35, 42, 49, 56]
    plan.update(slots[:3], torch.tensor([1, 0, 17], device=DEVICE))
    assert plan.ranks[:3].tolist() == [-1, -1, 0]
    assert plan.requests[0, :5].tolist() == [2, 0, 17, 2, 1]
    assert plan.rank_ends[:2].tolist() == [0, 2]
    assert plan.short_requests[: plan.shorts[0]].tolist() == [0]
    assert plan.runs.tolist() == [[0, 0, 0, 1], [0, 0, 1, 2], *([0, -1, worker, worker + 1] for worker in (2, 3, 4, 5))]
    assert plan.parts[:3, 2, 0].tolist() == [0, -1, 2]
    with pytest.raises(ValueError, match="9 requests in a plan made for 8"):
        plan.update(slots, torch.tensor([1] * 9, device=DEVICE))


# Gluon has no interpreter.
needs_hopper = pytest.mark.skipif(
    not CUDA or torch.cuda.get_device_capability()[0] != 9, reason="needs a GPU of compute capability 9"
)


@needs_hopper
@pytest.mark.parametrize("dtype", SERVED_DTYPES)
@pytest.mark.parametrize("workers", [1, 3, 40])
@pytest.mark.parametrize("sinks", [False, True])
def test_hopper_ragged_lengths(dtype: torch.dtype, workers: int, sinks: bool) -> None:
    """1 to past several tiles, at tile borders, with idle requests between: whole, cut once, cut into many."""
    lengths = [1, 63, 0, 64, 65, 1200, 0, 127, 128, 129, 520, 2, 191, 192, 193, 255, 256, 257]
    options = {"sinks": torch.linspace(-2, 3, 8)} if sinks else {}
    Case(lengths, dtype=dtype, head_dim=128, options=options).run(workers=workers, hopper=True)


@needs_hopper
@pytest.mark.parametrize("length", [1, 64, 65, 1023, 1024, 1025, 2560, 20_000])
def test_hopper_one_request(length: int) -> None:
    Case([length], head_dim=128).run(workers=7, hopper=True)


@needs_hopper
@pytest.mark.parametrize("dtype", SERVED_DTYPES)
@pytest.mark.parametrize(
    ("kv_heads", "group"), [(4, 1), (2, 4), (1, 8), (3, 5), (2, 12), (1, 16), (1, 20), (1, 32), (1, 48), (1, 64)]
)
def test_hopper_heads(kv_heads: int, group: int, dtype: torch.dtype) -> None:
    case = Case([5, 90, 133, 700, 64], kv_heads=kv_heads, group=group, head_dim=128, dtype=dtype)
    case.run(hopper=True)
    case.q *= 60  # scores beyond the reach of float16's and float32's exponential
    case.run(hopper=True)


@needs_hopper
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (2, 4), (3, 5), (1, 20)])
def test_hopper_queries_of_a_fused_projection(kv_heads: int, group: int) -> None:
    Case([5, 90, 133, 700, 64], kv_heads=kv_heads, group=group, head_dim=128, fused=True).run(hopper=True)


@needs_hopper
@pytest.mark.parametrize("window", [0, 1, 63, 64, 65, 160, 4000])
@pytest.mark.parametrize("workers", [2, 11])
def test_hopper_window(window: int, workers: int) -> None:
    Case([1, 64, 65, 165, 1200, 228], head_dim=128).run(window=window, workers=workers, hopper=True)


@needs_hopper
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_runs_that_whoever_is_done_takes(workers: int, spare: int, kv_heads: int) -> None:
    """Three rounds of them, two, and one; also by a program that has no run of its own; in each layer anew."""
    tiles_124 = [2760, 2000, 1, 240, 0, 2760]
    case = Case(tiles_124, kv_heads=kv_heads, head_dim=128, dtype=torch.bfloat16)
    case.run(workers=workers, spare=spare, hopper=True, layers=3)


@pytest.mark.parametrize("workers", [1, 3])
def test_runs_have_each_tile_once(workers: int) -> None:
    some = [33, 60, 1, 0, 17]  # 9 tiles
    plan = DecodePlan(
        max_batch=len(some) + 1,
        kv_heads=1,
        group=1,
        head_dim=64,
        v_head_dim=64,
        itemsize=2,
        multiprocessors=workers,
        device=DEVICE,
        config=DecodeConfig(16, 4, 2, 1, left_over=True),
    )
    slots = torch.arange(1, 2 + len(some), device=DEVICE)
    one = 2 * LEFT_ONE_IN.value * workers  # tiles of which a run of two is left over for each worker
    for total, rounds in ((10, 0), (one - 1, 0), (one, 1), (5 * one // 2, 2), (21 * one, 5)):
        lengths = torch.tensor([*some, max(1, total - 9) * 16], device=DEVICE)
        plan.runs_taken.fill_(7)  # as if a step had broken off
        plan.update(slots, lengths)
        assert plan.runs_taken.tolist() == [0]
        left = int(plan.runs_left)
        assert plan.ends[-1] == total
        assert left == rounds * workers
        runs = plan.runs[: workers + left].tolist()
        assert [run[2] for run in runs] == [0, *(run[3] for run in runs[:-1])]
        assert runs[-1][3] == total
        sizes = [run[3] - run[2] for run in runs]
        assert min(sizes) >= (1 if total >= workers else 0)
        if left:
            assert min(sizes) >= 2
            assert sum(sizes[workers:]) == total // LEFT_ONE_IN.value
            by_round = [sizes[at : at + workers] for at in range(workers, len(sizes), workers)]
            assert all(max(its) - min(its) <= 1 for its in by_round)
            assert [sum(its) for its in by_round] == sorted((sum(its) for its in by_round), reverse=True)
        begin, rank = 0, 0
        for request, end in enumerate(plan.ends.tolist()):
            if end == begin:
                assert plan.ranks[request] == -1
                continue
            its = [at for at, run in enumerate(runs) if run[2] < end and run[3] > begin]
            assert all(runs[at][0] <= rank <= runs[at][1] for at in its)
            first, step, count = plan.parts[request, :, 0].tolist()
            places = [first + step * part for part in range(count)]
            assert places == ([] if len(its) == 1 else [rank + at for at in its])
            begin, rank = end, rank + 1


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("itemsize", [1, 2])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("shared", [200 * 1024, 87 * 1024])
def test_configurations_fit_the_shared_memory(head_dim: int, itemsize: int, together: bool, shared: int) -> None:
    """A program's loads are on their way into all of its stages but one."""
    token_bytes = 2 * head_dim * itemsize
    config = DecodeConfig.of(token_bytes, shared, together=together)
    assert (2 if together else 1) * (config.stages - 1) * config.tile * token_bytes <= shared
    assert config.tile >= 32
