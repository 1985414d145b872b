# SPDX-License-Identifier: Apache-2.0
"""Bad input is refused with the value in the message, and changes nothing."""

import gc
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from core_harness import PAGE, MakeCache, Request, ids, ints, run

from vt_sglang._core import InvariantError, KVCache, slot_bytes


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"token_bytes": 0}, "token_bytes must be positive"),
        ({"slots": 1}, "slots must be at least 2"),
        ({"slots": 0}, "slots must be at least 2"),
        ({"budget_pages": 0}, "budget_pages must be positive"),
        ({"budget_pages": 2**32 - 1}, "budget_pages must be positive and less than"),
        ({"page_bytes": 2**40, "budget_pages": 2**31}, "no file holds 2147483649 pages of 1099511627776 bytes"),
        ({"slot_tokens": 0}, "slot_tokens must be positive"),
        ({"driver": "tpu"}, "'tpu'"),
        ({"page_bytes": 0}, "4096; got 0"),
        ({"page_bytes": 1000}, "4096; got 1000"),
        ({"token_bytes": 2**62}, str(2**62)),
        ({"slot_tokens": 2**62}, str(2**62)),
    ],
)
def test_sizes_that_cannot_be(make_cache: MakeCache, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_cache(**sizes)


@pytest.mark.parametrize("sizes", [{"slots": -1}, {"budget_pages": 2**40}, {"token_bytes": "64"}, {"wrong": 1}])
def test_arguments_of_the_wrong_kind(make_cache: MakeCache, sizes: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        make_cache(**sizes)


def test_sizes(make_cache: MakeCache) -> None:
    """A slot is a whole number of tokens and of pages, and holds at least what was asked for."""
    for token_bytes in (64, 96, 1000, 4096, 6000):
        cache = make_cache(token_bytes, slots=5, slot_tokens=10, budget_pages=7)
        assert cache.slot_bytes == slot_bytes(PAGE, token_bytes, 10)
        assert cache.slot_bytes % PAGE == cache.slot_bytes % token_bytes == 0
        assert cache.slot_tokens == cache.slot_bytes // token_bytes >= 10
        assert (cache.slots, cache.page_bytes, cache.token_bytes) == (5, PAGE, token_bytes)
        assert cache.total_tokens == 7 * PAGE // token_bytes
        assert cache.base % PAGE == 0
        assert cache.driver == "host"


@pytest.mark.parametrize("sizes", [(0, 64, 10), (4096, 0, 10), (4096, 2**63, 10), (4096, 64, 2**63)])
def test_slot_bytes_refuses_sizes_that_cannot_be(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"page_bytes and token_bytes|tokens of \d+ bytes"):
        slot_bytes(*sizes)


@pytest.mark.parametrize(
    "tokens",
    [
        array("i", [1, 2]),
        array("d", [1.0]),
        b"abcdefgh",
        np.zeros(2, dtype=np.uint64),
        np.zeros(2, dtype=np.int32),
        np.zeros((2, 2), dtype=np.int64),
        np.array(5),
    ],
)
def test_token_ids_are_a_buffer_of_int64(cache: KVCache, tokens: Any) -> None:
    with pytest.raises(TypeError, match="int64"):
        cache.match(None, tokens)


@pytest.mark.parametrize("tokens", [[1, 2], None, "abc", 5])
def test_token_ids_are_a_buffer(cache: KVCache, tokens: Any) -> None:
    with pytest.raises(TypeError):
        cache.match(None, tokens)


def test_token_ids_of_every_kind_of_buffer(cache: KVCache) -> None:
    run(cache, [1, 2, 3])
    for tokens in (array("q", [1, 2, 3]), np.array([1, 2, 3]), memoryview(array("q", [1, 2, 3]))):
        assert cache.match(None, tokens)[1] == 3
    with pytest.raises((BufferError, ValueError)):
        cache.match(None, np.array([1, 0, 2, 0, 3, 0])[::2])


def test_a_limit_is_not_negative(cache: KVCache) -> None:
    with pytest.raises(TypeError):
        cache.match(None, ids("abc"), -1)


@pytest.mark.parametrize("slot", [0, 1, 5, 6, 2**32 - 1])
def test_operations_on_a_slot_that_is_not_live(cache: KVCache, slot: int) -> None:
    """The padding slot, idle ones, and numbers that are no slot's."""
    operations: list[Callable[[], Any]] = [
        lambda: cache.release(slot),
        lambda: cache.record(slot, ids("a")),
        lambda: cache.grow(ints(slot), ints(1)),
        lambda: cache.pages_to_grow(ints(slot), ints(1)),
        lambda: cache.begin_forward(ints(slot)),
        lambda: cache.slot_pages(slot),
    ]
    for operation in operations:
        with pytest.raises(ValueError, match=f"slot {slot} is not live"):
            operation()


def test_a_released_slot_is_not_live(cache: KVCache) -> None:
    request = run(cache, ids("abc"))
    with pytest.raises(ValueError, match=f"slot {request.slot} is not live"):
        cache.release(request.slot)
    with pytest.raises(ValueError, match="not live"):
        cache.record(request.slot, ids("abc"))


@pytest.mark.parametrize("values", [ints(-1), ints(2**40)])
def test_slots_out_of_range(cache: KVCache, values: Any) -> None:
    with pytest.raises(ValueError, match=f"slot out of range: {values[0]}"):
        cache.begin_forward(values)


def test_token_counts_out_of_range(cache: KVCache) -> None:
    request = Request(cache, ids("abc"))
    with pytest.raises(ValueError, match="token count out of range: -5"):
        cache.grow(ints(request.slot), ints(-5))
    for method in cache.grow, cache.pages_to_grow:
        with pytest.raises(ValueError, match="one token count per slot"):
            method(ints(request.slot), ints(4, 5))
    request.abort()


def test_no_more_than_is_backed_can_be_recorded(cache: KVCache) -> None:
    request = Request(cache, ids("abc"))
    with pytest.raises(ValueError, match=f"slot {request.slot} has 3 tokens; 4 cannot be recorded"):
        cache.record(request.slot, ids("abcd"))
    assert cache.record(request.slot, ids("abcd"), 3)[2] == 3
    request.abort()


# ---- tensor


def test_a_tensor_is_a_view(cache: KVCache) -> None:
    request = Request(cache, ids("abcdefgh"))
    request.verify()
    offset = request.slot * cache.slot_bytes
    whole = np.from_dlpack(cache.tensor(offset, [2, 8, 128], [0, 128, 1], "float64"))
    assert whole.shape == (2, 8, 128)
    assert whole.__array_interface__["data"][0] == cache.base + offset
    half = np.from_dlpack(cache.tensor(offset + 4, [8, 3], [256, 2], "float32"))
    assert half.strides == (1024, 8)
    half[7, 2] = 5
    assert np.from_dlpack(cache.tensor(offset, [8, 256], [256, 1], "float32"))[7, 5] == 5
    request.abort()


@pytest.mark.parametrize(("dtype", "size"), [("uint8", 1), ("float16", 2), ("float32", 4), ("float64", 8)])
def test_types_of_tensors(cache: KVCache, dtype: str, size: int) -> None:
    view = np.from_dlpack(cache.tensor(0, [4], [1], dtype))
    assert view.dtype == np.dtype(dtype)
    assert view.itemsize == size


def test_a_tensor_of_the_host_is_the_cpus(cache: KVCache) -> None:
    assert cache.tensor(0, [4], [1], "bfloat16").__dlpack_device__() == (1, 0)


def test_a_tensor_keeps_the_arena_alive() -> None:
    cache = KVCache(driver="host", page_bytes=PAGE, token_bytes=64, slots=2, slot_tokens=64, budget_pages=4)
    view = np.from_dlpack(cache.tensor(0, [PAGE], [1], "uint8"))
    del cache
    gc.collect()
    view[:] = 7
    assert view.sum() == 7 * PAGE


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "dtype"),
    [
        (0, [1], [1], "int7"),
        (0, [1, 1], [1], "uint8"),
        (0, [0], [1], "uint8"),
        (0, [2], [-1], "uint8"),
        (1, ["all"], [1], "uint8"),
        (0, ["all", 2], [1, 1], "uint8"),
        (0, [2], ["all"], "uint8"),
        ("all", [1], [1], "uint8"),
        (2**64 - 8, [1], [1], "float64"),
        (2**64 - 1, [2], [1], "uint8"),
        (0, [2**32 + 1], [2**32], "uint8"),
        (0, [2**61 + 1], [1], "float64"),
        (0, [2**33, 2**33, 2], [2**62, 2**62, 1], "float32"),
    ],
)
def test_a_tensor_lies_inside_the_arena(
    cache: KVCache, offset: Any, shape: list[Any], strides: list[Any], dtype: str
) -> None:
    """Also where the size in bytes is more than 64 bits hold. "all" stands for the arena's size."""
    size = cache.slots * cache.slot_bytes
    numbers = [[size if value == "all" else value for value in values] for values in ([offset], shape, strides)]
    with pytest.raises(ValueError, match=r"dtype|shape|arena"):
        cache.tensor(numbers[0][0], numbers[1], numbers[2], dtype)


def test_a_tensor_may_be_the_whole_arena(cache: KVCache) -> None:
    size = cache.slots * cache.slot_bytes
    assert np.from_dlpack(cache.tensor(0, [size], [1], "uint8")).shape == (size,)
    assert np.from_dlpack(cache.tensor(size - 8, [1], [1], "float64")).shape == (1,)


def test_a_node_is_bound_in_its_own_namespace(cache: KVCache) -> None:
    slot = cache.bind("mine", 0, 4)[0]
    cache.record(slot, ids("abcd"))
    node, _ = cache.match("mine", ids("abcd"))
    cache.lock(node)
    with pytest.raises(ValueError, match="another namespace"):
        cache.bind("yours", node, 6)
    assert cache.bind("mine", node, 6)[0] != slot


def test_only_what_was_locked_is_unlocked(cache: KVCache) -> None:
    """An ancestor is protected by its descendant's lock, which is not the ancestor's to undo."""
    slot = cache.bind(None, 0, 4)[0]
    cache.record(slot, ids("abcd"))
    cache.release(slot)
    ancestor, _ = cache.match(None, ids("ab"))
    node, _ = cache.match(None, ids("abcd"))
    cache.lock(node)
    with pytest.raises(InvariantError, match="more often than locked"):
        cache.unlock(ancestor)
    cache.unlock(node)
    with pytest.raises(InvariantError, match="more often than locked"):
        cache.unlock(node)
