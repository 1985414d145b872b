# SPDX-License-Identifier: Apache-2.0
"""What the kernels cannot take is refused, by the argument's name, before any of them is launched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from arena import CUDA, DEVICE
from vt_sglang.triton_kernels import (
    decode,
    decode_hopper,
    merge,
    prefill,
    prefill_hopper,
    prefill_merge,
    shared_hopper,
    store,
)
from vt_sglang.triton_kernels.decode_plan import DecodeConfig, DecodePlan, SharedTasks
from vt_sglang.triton_kernels.prefill import PrefillPlan
from vt_sglang.triton_kernels.prefill_hopper_plan import HopperPlan

BATCH, KV_HEADS, GROUP, DIM, SLOTS, SLOT_TOKENS = 3, 2, 4, 64, 5, 40
HEADS = KV_HEADS * GROUP
SIZES = {"group": GROUP, "head_dim": DIM, "v_head_dim": DIM, "itemsize": 2, "device": DEVICE}
DECODE_SIZES = SIZES | {"max_batch": BATCH + 1, "kv_heads": KV_HEADS, "multiprocessors": 4}
TASKS = {"max_tasks": 4, "max_levels": 2, "max_places": 20, "members": 4, "workers": 2, "tile": 64, "device": DEVICE}


def half(*shape: int) -> torch.Tensor:
    """Zeros, float16."""
    return torch.zeros(shape, dtype=torch.float16, device=DEVICE)


class Elsewhere(torch.Tensor):
    """A tensor that says to be on another device than all others."""

    def get_device(self) -> int:
        return 7


def _shifted(it: torch.Tensor) -> torch.Tensor:
    """The same, begun an element later."""
    return torch.zeros(it.numel() + 1, dtype=it.dtype, device=DEVICE)[1:].view(it.shape)


def _between(it: torch.Tensor, extra: int) -> torch.Tensor:
    """The same with other elements between the tokens."""
    width = it.shape[-2] * it.shape[-1]
    return torch.nn.functional.pad(it.flatten(-2), (0, extra))[..., :width].unflatten(-1, it.shape[-2:])


CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "none": lambda _: None,
    "list": lambda it: it.tolist(),
    "device": lambda it: it.as_subclass(Elsewhere),
    "int32": lambda it: it.int(),
    "int64": lambda it: it.long(),
    "int16": lambda it: it.short(),
    "float8": lambda it: it.to(torch.float8_e4m3fn),
    "float16": lambda it: it.half(),
    "bfloat16": lambda it: it.bfloat16(),
    "float32": lambda it: it.float(),
    "float64": lambda it: it.double(),
    "gaps": lambda it: torch.stack([it, it], -1)[..., 0],
    "fewer dimensions": lambda it: it[0],
    "more dimensions": lambda it: it[None],
    "shorter": lambda it: it[:-1],
    "longer": lambda it: torch.cat([it, it]),
    "empty": lambda it: it[:0],
    "five rows": lambda it: it[:5],
    "fewer tokens": lambda it: it[:, :-1],
    "one head": lambda it: it[..., :1, :],
    "more heads": lambda it: it.repeat_interleave(2, -2),
    "smaller heads": lambda it: it[..., :48].contiguous(),
    "shifted": _shifted,
    "between 4": lambda it: _between(it, 4),
    "between 64": lambda it: _between(it, 64),
    "heads apart": lambda it: torch.stack([it, it], -2)[..., 0, :],
    "slots apart": lambda it: torch.cat([it, it], 1)[:, :SLOT_TOKENS],
}
ANY = ["none", "list", "device"]
SET = ["list", "device"]  # where None will do
VECTOR = ["gaps", "fewer dimensions", "more dimensions", "shorter", "longer"]
INDICES = [*ANY, *VECTOR, "float32", "int16"]
HEADS_OF = ["gaps", "fewer dimensions", "more dimensions", "one head", "more heads", "smaller heads", "int32"]
ROWS = ["shorter", "longer"]
TOGETHER = ["gaps", "fewer dimensions", "more dimensions", "int32", "float64", "heads apart"]

REFUSED: dict[tuple[str, str], list[str]] = {
    **{
        (call, name): changes
        for call in ("decode", "prefill", "hopper")
        for name, changes in {
            "k": [*ANY, "gaps", "fewer dimensions", "smaller heads", "int32", "bfloat16", "float32", "float8"],
            "v": [*ANY, *HEADS_OF, *ROWS, "fewer tokens", "float32", "float8"],
            "out": [*ANY, *HEADS_OF, *ROWS, "float32", "bfloat16"],
            "slots": INDICES,
            "lengths": INDICES,
            "sinks": [*SET, *VECTOR, "int32"],
        }.items()
    },
    ("decode", "q"): [*ANY, *HEADS_OF[:-1], *ROWS],
    ("prefill", "q"): [*ANY, *HEADS_OF[:-1], "five rows"],
    ("hopper", "q"): [*ANY, *HEADS_OF[:-1], "five rows", "shifted"],
    **{
        (call, name): [*SET, "fewer dimensions", "more dimensions", "longer", "empty", "float16"]
        for call in ("decode", "prefill", "store")
        for name in ("k_scale", "v_scale")
    },
    ("prefill", "query_starts"): [*ANY, *VECTOR, "int64"],
    ("store", "k"): ["none", "list", *TOGETHER],  # where k is, the others should be
    ("store", "v"): [*ANY, *TOGETHER, *ROWS, "one head"],
    ("store", "k_cache"): [*ANY, *TOGETHER, "one head", "more heads", "smaller heads"],
    ("store", "v_cache"): [*ANY, *TOGETHER, "shorter", "one head", "more heads", "smaller heads", "float32"],
    ("store", "locations"): INDICES,
    ("merge", "out"): [*ANY, *HEADS_OF, "shorter"],
    ("merge", "sinks"): [*SET, *VECTOR, "int32"],
    ("prefill_merge", "out"): [*ANY, *HEADS_OF, "five rows"],
    ("prefill_merge", "sinks"): [*SET, *VECTOR, "int32"],
    ("decode_update", "slots"): INDICES,
    ("decode_update", "lengths"): [*ANY, "gaps", "fewer dimensions", "more dimensions", "float32", "int16", "empty"],
    ("prefill_update", "query_starts"): [*ANY, "gaps", "fewer dimensions", "more dimensions", "int64", "empty"],
    ("prefill_update", "among"): [*SET, *VECTOR, "int64"],
}
REFUSED["prefill", "k"] = REFUSED["prefill", "k"] + ["shifted", "between 4"]
REFUSED["prefill", "v"] = REFUSED["prefill", "v"] + ["shifted", "between 4"]
for _name in "kv":
    REFUSED["hopper", _name] = REFUSED["hopper", _name] + ["shifted", "between 4", "heads apart", "slots apart"]
for _call in ("decode", "hopper"):
    REFUSED[_call, "k"] = REFUSED[_call, "k"] + ["one head", "more heads"]
REFUSED["hopper", "out"] = REFUSED["hopper", "out"] + ["between 64"]


class NoLaunch:
    """In a kernel's place: no check may come after a launch."""

    launches = 0

    def __getitem__(self, _grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*_arguments: object, **_options: object) -> None:
            self.launches += 1

        return launch


HOPPER = CUDA and torch.cuda.get_device_capability()[0] == 9


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> NoLaunch:
    stub = NoLaunch()
    for module, name in (
        (decode, "decode_kernel"),
        (decode_hopper, "decode_hopper_kernel"),
        (merge, "merge_kernel"),
        (prefill, "prefill_kernel"),
        (prefill_hopper, "prefill_hopper_kernel"),
        (prefill_merge, "prefill_merge_kernel"),
        (shared_hopper, "shared_hopper_kernel"),
        (store, "store_kernel"),
    ):
        monkeypatch.setattr(module, name, stub)
    return stub


def _attention(rows: int) -> dict[str, Any]:
    cache = [half(SLOTS, SLOT_TOKENS, KV_HEADS, DIM) for _ in "kv"]
    return {
        "q": half(rows, HEADS, DIM),
        "k": cache[0],
        "v": cache[1],
        "out": half(rows, HEADS, DIM),
        "slots": torch.arange(BATCH, device=DEVICE),
        "lengths": torch.arange(BATCH, device=DEVICE) + 5,
        "scaling": 1.0,
        "sinks": torch.zeros(HEADS, device=DEVICE),
    }


def _scales() -> dict[str, torch.Tensor]:
    return {name: torch.ones(1, device=DEVICE) for name in ("k_scale", "v_scale")}


def _decode() -> tuple[Callable[..., None], dict[str, Any]]:
    arguments = _attention(BATCH) | _scales()
    plan = DecodePlan(**DECODE_SIZES)
    plan.update(arguments["slots"], arguments["lengths"])
    return decode.decode_attention, arguments | {"plan": plan}


def _prefill() -> tuple[Callable[..., None], dict[str, Any]]:
    starts = torch.tensor([0, 2, 5, 7], dtype=torch.int32, device=DEVICE)
    plan = PrefillPlan(**SIZES)
    plan.update(starts, 7)
    return prefill.prefill_attention, _attention(9) | _scales() | {"query_starts": starts, "plan": plan}


def _hopper() -> tuple[Callable[..., None], dict[str, Any]]:
    plan = HopperPlan(group=GROUP, kv_heads=KV_HEADS, head_dim=DIM, device=DEVICE, processors=4)
    plan.update([2, 3, 2], [300, 200, 20])
    plan.on_hopper = True
    return prefill_hopper.prefill_hopper_attention, _attention(9) | {"plan": plan}


def _store() -> tuple[Callable[..., None], dict[str, Any]]:
    caches = {name: half(SLOTS * SLOT_TOKENS, KV_HEADS, DIM) for name in ("k_cache", "v_cache")}
    new = {"k": half(BATCH, KV_HEADS, DIM), "v": half(BATCH, KV_HEADS, DIM)}
    return store.store_kv, new | caches | _scales() | {"locations": torch.arange(BATCH, device=DEVICE)}


def _merge() -> tuple[Callable[..., None], dict[str, Any]]:
    arguments = _decode()[1]
    return merge.merge_parts, {name: arguments[name] for name in ("plan", "out", "sinks")}


def _prefill_merge() -> tuple[Callable[..., None], dict[str, Any]]:
    arguments = _hopper()[1]
    return prefill_merge.merge_prefill, {name: arguments[name] for name in ("plan", "out", "sinks")}


def _decode_update() -> tuple[Callable[..., None], dict[str, Any]]:
    arguments = _decode()[1]
    return arguments["plan"].update, {name: arguments[name] for name in ("slots", "lengths")}


def _prefill_update() -> tuple[Callable[..., None], dict[str, Any]]:
    arguments = _prefill()[1]
    among = torch.ones(BATCH, dtype=torch.int32, device=DEVICE)
    return arguments["plan"].update, {"query_starts": arguments["query_starts"], "tokens": 7, "among": among}


MAKERS = {
    it.__name__.removeprefix("_"): it
    for it in (_decode, _prefill, _hopper, _store, _merge, _prefill_merge, _decode_update, _prefill_update)
}


@pytest.mark.parametrize("call", MAKERS)
def test_what_fits_is_taken(call: str, kernels: NoLaunch) -> None:
    function, arguments = MAKERS[call]()
    function(**arguments)
    assert kernels.launches > 0 or call.endswith("_update")


@pytest.mark.parametrize(
    ("call", "name", "change"),
    [(call, name, change) for (call, name), changes in REFUSED.items() for change in changes],
)
def test_what_does_not_fit_is_refused_by_name(call: str, name: str, change: str, kernels: NoLaunch) -> None:
    """And told what it is, and what it should be."""
    function, arguments = MAKERS[call]()
    arguments[name] = CHANGES[change](arguments[name])
    kind = TypeError if change in ("none", "list") else ValueError
    with pytest.raises(kind, match=rf"\b{name}\b.* (is|are|has|begin) .*should (be|begin|have) ") as error:
        function(**arguments)
    if kind is TypeError:
        assert f"{name} is a {type(arguments[name]).__name__}, and should be a torch.Tensor" in str(error.value)
    assert kernels.launches == 0


def test_an_error_says_all() -> None:
    function, arguments = _decode()
    where = torch.zeros(0, device=DEVICE).device
    expected = (
        f"lengths is [3] float32 on {where} with strides [1], and should be [3] int64 or int32 on {where}, contiguous"
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011
        function(**arguments | {"lengths": arguments["lengths"].float()})
    assert str(error.value) == expected


@pytest.mark.parametrize("maker", [_decode, _prefill, _hopper])
def test_all_of_a_dtype_that_no_kernel_computes_in(maker: Callable[[], Any]) -> None:
    function, arguments = maker()
    for name in ("q", "k", "v", "out"):
        arguments[name] = arguments[name].short()
    with pytest.raises(ValueError, match=r"q is .* int16 .* should be .* bfloat16 or float16"):
        function(**arguments)


def test_elements_of_another_size_than_the_plan_s() -> None:
    for maker in (_decode, _prefill, _hopper):
        function, arguments = maker()
        for name in ("q", "k", "v", "out"):
            arguments[name] = arguments[name].float()
        with pytest.raises(ValueError, match="k is float32, and should have the 2 bytes an element of the plan"):
            function(**arguments)


@pytest.mark.parametrize("maker", [_decode, _prefill])
def test_float8_beside_half_precision(maker: Callable[[], Any], kernels: NoLaunch) -> None:
    function, arguments = maker()
    plan = arguments["plan"]
    plan.heads = plan.heads._replace(itemsize=1)
    for name in "kv":
        arguments[name] = arguments[name].to(torch.float8_e4m3fn)
    function(**arguments)
    assert kernels.launches > 0


def test_a_batch_that_the_plan_is_not_of() -> None:
    """Whose requests' work was dealt out is what counts, and not how many the plan may have."""
    for maker in (_decode, _prefill, _hopper):
        function, arguments = maker()
        arguments["plan"].batch = BATCH + 1
        with pytest.raises(ValueError, match=r"(q|slots) is \[3.* should be \[4"):
            function(**arguments)


@pytest.mark.parametrize(
    ("name", "number"),
    [("head_dim", 8), ("head_dim", 257), ("v_head_dim", 0), ("v_head_dim", 512), ("group", 0), ("itemsize", 3)],
)
def test_heads_that_no_kernel_takes(name: str, number: int) -> None:
    for make, sizes in ((PrefillPlan, SIZES), (DecodePlan, DECODE_SIZES)):
        with pytest.raises(ValueError, match=f"{name} is {number}, and should be "):
            make(**sizes | {name: number})


@pytest.mark.parametrize("name", ["max_batch", "kv_heads", "multiprocessors"])
def test_a_decode_plan_of_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0, and should be at least 1"):
        DecodePlan(**DECODE_SIZES | {name: 0})


def test_decode_plans_that_no_kernel_can_follow() -> None:
    for tile in (0, 8, 48):
        with pytest.raises(ValueError, match=f"config has tiles of {tile} tokens, and should have a power of two"):
            DecodePlan(**DECODE_SIZES, config=DecodeConfig(tile, 4, 2, 1))
    with pytest.raises(ValueError, match="group is 65, and should be at most 64 on this GPU"):
        DecodePlan(**DECODE_SIZES | {"group": 65}, config=decode_hopper.CONFIG)
    with pytest.raises(TypeError, match="'NoneType' object cannot be interpreted as an integer"):
        DecodePlan(**DECODE_SIZES, window=None)
    for name in ("max_batch", "max_tasks", "max_levels", "max_places", "members", "workers", "tile"):
        with pytest.raises(ValueError, match=f"{name} is 0, and should be at least 1"):
            SharedTasks(**TASKS | {"max_batch": 2, "tile": 16} | {name: 0})


@pytest.mark.parametrize("scaling", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("maker", ["decode", "prefill", "hopper"])
def test_scaling_that_does_not_order_scores(maker: str, scaling: float, kernels: NoLaunch) -> None:
    function, arguments = {"decode": _decode, "prefill": _prefill, "hopper": _hopper}[maker]()
    with pytest.raises(ValueError, match=f"scaling is {scaling}, and should be a positive number"):
        function(**arguments | {"scaling": scaling})
    assert kernels.launches == 0


def test_a_merge_before_anything_was_planned(kernels: NoLaunch) -> None:
    plan = DecodePlan(**DECODE_SIZES)
    with pytest.raises(ValueError, match="the plan is of no batch yet: call its update first"):
        merge.merge_parts(plan, half(0, HEADS, DIM), None)
    assert kernels.launches == 0


def test_more_tokens_than_a_descriptor_counts(kernels: NoLaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    function, arguments = _hopper()
    monkeypatch.setattr(prefill_hopper, "MOST_ROWS", SLOTS * SLOT_TOKENS)
    with pytest.raises(ValueError, match=f"should have fewer than {SLOTS * SLOT_TOKENS} tokens in all"):
        function(**arguments)
    assert kernels.launches == 0


def test_tasks_that_do_not_go_with_the_plan() -> None:
    tile = DecodePlan(**DECODE_SIZES).config.tile
    tasks = TASKS | {"max_batch": BATCH + 1, "tile": tile}
    with pytest.raises(ValueError, match="window is 100: it should be negative"):
        DecodePlan(**DECODE_SIZES, window=100, shared=SharedTasks(**tasks))
    with pytest.raises(ValueError, match="shared is for batches of 3, and should be for max_batch, 4"):
        DecodePlan(**DECODE_SIZES, shared=SharedTasks(**tasks | {"max_batch": BATCH}))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"logit_cap": 1.0}, "logit_cap should be 0"),
        ({"scaling": -1.0}, "scaling is -1.0, and should be a positive number"),
        ({"k_scale": 1}, "k_scale and v_scale None"),
        ({"v_scale": 1}, "k_scale and v_scale None"),
        ({"config": DecodeConfig(64, 4, 3, 1, left_over=True)}, "should then be DecodeConfig"),
        ({"gap": 8}, "q is .* and should have heads side by side"),
        ({"gpu": False}, "k and v are .* on Hopper"),
        ({"members": 17}, "tiles of 64 tokens for 17 times 4 query heads, and should have tiles of 64 for at most 64"),
        ({"tile": 32}, "tiles of 32 tokens for 4 times 4 query heads, and should have tiles of 64"),
        ({"dim": 64}, "k and v are .* and should have heads of 128 elements"),
        ({"dtype": torch.float32}, "k and v are .* and should have heads of 128 elements, bfloat16 or float16"),
        ({"step": 64}, None),
        ({"step": 4}, "k and v are .* slots one after the other"),
        ({}, None),
    ],
)
def test_what_the_kernels_for_hopper_cannot_do(
    changed: dict[str, Any], error: str | None, kernels: NoLaunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_hopper, "on_hopper", lambda _: changed.get("gpu", True))
    dim, dtype = changed.get("dim", 128), changed.get("dtype", torch.float16)
    sizes = {name: changed[name] for name in ("members", "tile") if name in changed}
    plan = DecodePlan(
        **DECODE_SIZES | {"head_dim": dim, "v_head_dim": dim, "itemsize": dtype.itemsize},
        config=changed.get("config", decode_hopper.CONFIG),
        shared=SharedTasks(**TASKS | sizes, max_batch=BATCH + 1),
    )
    for module in (decode_hopper, shared_hopper):
        monkeypatch.setattr(module, "gluon_rows", lambda *_: None)
    monkeypatch.setattr(decode_hopper, "gluon_heads", lambda *_: None)
    arguments = _attention(BATCH)
    for name in ("q", "k", "v", "out"):
        shape = (*arguments[name].shape[:-1], dim)
        arguments[name] = torch.zeros(shape, dtype=dtype, device=DEVICE)
    if "step" in changed:
        for name in "kv":
            arguments[name] = _between(arguments[name], changed["step"])
    if "gap" in changed:
        arguments["q"] = torch.zeros(BATCH, HEADS, dim + changed["gap"], dtype=dtype, device=DEVICE)[:, :, :dim]
    arguments["scaling"] = changed.get("scaling", 1.0)
    options = {name: changed[name] for name in ("logit_cap", "k_scale", "v_scale") if name in changed}
    options |= {name: torch.ones(1, device=DEVICE) for name in options if name != "logit_cap"}
    plan.batch = BATCH
    if error is None:
        decode.decode_attention(**arguments, plan=plan)
        assert kernels.launches == 3
        return
    with pytest.raises(ValueError, match=error):
        decode.decode_attention(**arguments, **options, plan=plan)
    assert kernels.launches == 0


@pytest.mark.parametrize("maker", [_decode, _prefill])
@pytest.mark.parametrize("cap", [-1.0, -0.5, float("nan"), float("inf")])
def test_a_cap_that_is_none(maker: Callable[[], Any], cap: float, kernels: NoLaunch) -> None:
    function, arguments = maker()
    with pytest.raises(ValueError, match=f"logit_cap is {cap}, and should be a positive number, or 0 for none"):
        function(**arguments, logit_cap=cap)
    assert kernels.launches == 0
    for good in (0, 0.0, 30, 1.5):
        function(**arguments, logit_cap=good)
    assert kernels.launches >= 4


def test_a_prefill_plan_of_hopper_s_without_a_gpu_s_multiprocessors() -> None:
    sizes = {"group": GROUP, "kv_heads": KV_HEADS, "head_dim": DIM}
    with pytest.raises(ValueError, match="processors is None, and should be a number for cpu, which is no GPU"):
        HopperPlan(**sizes, device="cpu")
    with pytest.raises(ValueError, match="processors is 0, and should be at least 1"):
        HopperPlan(**sizes, device="cpu", processors=0)
    assert HopperPlan(**sizes, device="cpu", processors=7).processors == 7


def test_hopper_s_kernel_elsewhere(kernels: NoLaunch) -> None:
    function, arguments = _hopper()
    arguments["plan"].on_hopper = False
    with pytest.raises(ValueError, match="should be for a GPU of compute capability 9"):
        function(**arguments)
    assert kernels.launches == 0


def test_hopper_s_kernel_takes_heads_of_two_sizes() -> None:
    plan = HopperPlan(group=GROUP, kv_heads=KV_HEADS, head_dim=80, device=DEVICE, processors=4)
    plan.update([2, 3, 2], [300, 200, 20])
    arguments = _hopper()[1] | {"plan": plan}
    for name in ("q", "k", "v", "out"):
        arguments[name] = half(*arguments[name].shape[:-1], 80)
    with pytest.raises(ValueError, match=r"q is \[9, 8, 80\].* should be \[tokens, heads, 64 or 128\]"):
        prefill_hopper.prefill_hopper_attention(**arguments)


def test_a_prefill_plan_of_hopper_s_of_a_broken_batch() -> None:
    plan = _hopper()[1]["plan"]
    with pytest.raises(ValueError, match="prefixes are of 2 requests, and should be of 3, as new"):
        plan.update([1, 2, 3], [4, 5])
    with pytest.raises(ValueError, match="the batch is 0, and should be at least 1"):
        plan.update([], [])


def test_heads_one_beside_the_other_where_there_is_one(kernels: NoLaunch) -> None:
    """Of a single head the stride says nothing."""
    one = torch.as_strided(half(BATCH * DIM), (BATCH, 1, DIM), (DIM, 1, 1))
    store.store_kv(one, one, one, one, torch.arange(BATCH, device=DEVICE))
    assert kernels.launches == 1


def test_prefill_steps_over_other_layers(kernels: NoLaunch) -> None:
    """By whole 16 bytes, and decode by any number."""
    for maker, extra in ((_prefill, 8), (_decode, 3)):
        function, arguments = maker()
        for name in "kv":
            arguments[name] = _between(arguments[name], extra)
        function(**arguments)
    assert kernels.launches == 3
