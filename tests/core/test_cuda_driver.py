# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver against a fake one that is strict about every call (fake_cuda.c)."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from core_fake_cuda import (
    NOT_PERMITTED,
    OUT_OF_MEMORY,
    POSIX_HANDLES,
    RDMA,
    VIRTUAL_MEMORY,
    FakeCuda,
)
from core_harness import PAGE, Geometry, Memory, Request, ids, ints, run

from vt_sglang._core import DriverError, KVCache, OutOfMemory, OutOfPages

BASE = "abcdef"  # a page and a half, of four tokens a page


# ---- what it does


def test_prefixes_are_aliased_and_tails_are_not_disturbed(fake_cuda: FakeCuda, geometry: Geometry) -> None:
    """As on the host: branches of one prefix share its pages, one extends the tail and the others copy it."""
    cache = fake_cuda.cache(geometry.token_bytes, budget_pages=64)
    base = "s" * geometry.tokens_past(2)
    run(cache, ids(base))
    branches = [Request(cache, ids(base + letter)) for letter in "xyz"]
    assert [it.tail for it in branches] == ["extended", "copied", "copied"]
    for it in branches:
        it.append(ids("end"))
    for it in branches:
        it.verify()
    memory = Memory(cache)
    shared = geometry.tokens_in(branches[1].shared)
    memory.tokens(branches[0].slot, 0, shared)[:] = np.arange(shared, dtype=np.uint64)[:, None]
    for it in branches[1:]:
        assert np.array_equal(memory.tokens(it.slot, 0, shared), memory.tokens(branches[0].slot, 0, shared))
        it.abort()
    branches[0].abort()
    cache.check()


def test_physical_memory_is_the_pages_that_exist(fake_cuda: FakeCuda) -> None:
    cache = fake_cuda.cache()
    run(cache, ids("abcdefgh"))
    assert cache.physical_bytes() == 3 * PAGE
    assert fake_cuda.count("handles") == 3
    cache.evict(100)
    assert cache.trim() == 2
    assert cache.physical_bytes() == PAGE
    assert (fake_cuda.count("handles"), fake_cuda.count("mappings")) == (1, 1)


def test_access_is_set_once_for_neighbours(fake_cuda: FakeCuda) -> None:
    """Setting access costs as much for a thousand pages as for one, so one call serves a run of addresses."""
    cache = fake_cuda.cache()
    fake_cuda.reset()
    first = Request(cache, ids("aaaabbbbccccdddd"))
    assert (fake_cuda.calls("cuMemMap"), fake_cuda.calls("cuMemSetAccess")) == (4, 1)
    second = Request(cache, ids("eeee"), namespace="other")
    fake_cuda.reset()
    cache.grow(ints(first.slot, second.slot), ints(24, 8))
    assert (fake_cuda.calls("cuMemMap"), fake_cuda.calls("cuMemSetAccess")) == (3, 2)
    first.abort()
    second.abort()


def test_replaced_pages_are_unmapped_first(fake_cuda: FakeCuda) -> None:
    """Only those that differ. The fake driver refuses a mapping over a mapping."""
    cache = fake_cuda.cache(slots=2)
    run(cache, ids("aaaabbbb"))
    run(cache, ids("aaaacccc"))
    fake_cuda.reset()
    request = Request(cache, ids("aaaabbbb"))
    assert (request.shared, request.mapped) == (2, 1)
    assert (fake_cuda.calls("cuMemUnmap"), fake_cuda.calls("cuMemMap")) == (1, 1)
    request.verify()
    request.abort()


def test_no_page_is_unmapped_while_its_access_is_not_set(fake_cuda: FakeCuda) -> None:
    """Pages come back at other places of slots that still map them where they were (the fake driver complains)."""
    cache = fake_cuda.cache(slots=6, budget_pages=24)
    draw = random.Random(1)
    paths = [""]
    for letter in range(200):
        beginning = draw.choice(paths)
        kept = beginning[: draw.randrange(len(beginning) + 1)]
        paths = [*paths[-8:], kept + chr(1000 + letter) * draw.randrange(1, 24)]
        run(cache, ids(paths[-1][:40]))
    assert fake_cuda.calls("cuMemUnmap") > 100
    assert fake_cuda.complaint() == ""


def test_a_returning_conversation_calls_nothing(fake_cuda: FakeCuda) -> None:
    cache = fake_cuda.cache()
    run(cache, ids(BASE))
    fake_cuda.reset()
    turn = Request(cache, ids(BASE + "g"))
    assert turn.tail == "extended"
    for name in ("cuMemCreate", "cuMemMap", "cuMemUnmap", "cuMemSetAccess", "cuMemcpyDtoDAsync", "cuCtxPushCurrent"):
        assert fake_cuda.calls(name) == 0, name
    turn.abort()


def test_a_page_is_mapped_once_as_the_source_of_copies(fake_cuda: FakeCuda) -> None:
    """And unmapped there before it is released."""
    cache = fake_cuda.cache()
    run(cache, ids(BASE))
    extender = Request(cache, ids(BASE + "x"))
    copier = Request(cache, ids(BASE + "y"))
    fake_cuda.reset()
    another = Request(cache, ids(BASE + "z"))
    assert fake_cuda.calls("cuMemcpyDtoDAsync") == 1
    assert fake_cuda.calls("cuMemMap") == another.mapped
    for it in extender, copier, another:
        it.verify()
        it.abort()
    cache.evict(100)
    cache.trim()
    assert fake_cuda.count("mappings") == 1, "the padding"
    assert fake_cuda.complaint() == ""


def test_tensors_are_on_the_device(fake_cuda: FakeCuda) -> None:
    assert fake_cuda.cache().tensor(0, [4], [1], "bfloat16").__dlpack_device__() == (2, 0)
    assert fake_cuda.cache(device=1).tensor(0, [4], [1], "float16").__dlpack_device__() == (2, 1)


def test_pages_of_the_granularity(fake_cuda: FakeCuda) -> None:
    assert fake_cuda.cache(page_bytes=0).page_bytes == PAGE


def test_pages_of_several_granules(fake_cuda: FakeCuda) -> None:
    """Also of three, though addresses can be aligned to powers of two only."""
    cache = fake_cuda.cache(page_bytes=3 * PAGE)
    run(cache, ids("x" * 14))
    copies = [Request(cache, ids("x" * 14 + letter)) for letter in "ab"]
    assert copies[1].tail == "copied"
    for it in copies:
        it.verify()
        it.abort()


def test_memory_is_open_to_network_cards_where_the_device_lets_them(fake_cuda: FakeCuda) -> None:
    plain = fake_cuda.cache()
    assert (plain.physical_bytes(), fake_cuda.count("rdma handles")) == (PAGE, 0)
    fake_cuda.support(RDMA)
    cache = fake_cuda.cache()
    assert (cache.physical_bytes(), fake_cuda.count("rdma handles")) == (PAGE, 1)


def test_pages_can_be_exported_where_the_device_lets_them(fake_cuda: FakeCuda) -> None:
    """And where it is asked for. NCCL registers memory by that."""
    plain = fake_cuda.cache(exportable_pages=True)
    assert (plain.physical_bytes(), fake_cuda.count("exportable handles")) == (PAGE, 0)
    del plain
    fake_cuda.support(POSIX_HANDLES)
    plain = fake_cuda.cache()
    assert (plain.physical_bytes(), fake_cuda.count("exportable handles")) == (PAGE, 0)
    del plain
    cache = fake_cuda.cache(exportable_pages=True)
    run(cache, ids(BASE))
    pages = cache.physical_bytes() // PAGE
    assert fake_cuda.count("handles") == fake_cuda.count("exportable handles") == pages > 1
    del cache
    fake_cuda.verify_nothing_is_left()


@pytest.mark.parametrize("name", ["cuMemGetAllocationGranularity", "cuMemCreate", "cuCtxPushCurrent"])
def test_pages_that_cannot_be_exported_are_had_without(fake_cuda: FakeCuda, name: str) -> None:
    """A container, for example, that refuses what the device has."""
    fake_cuda.support(POSIX_HANDLES)
    fake_cuda.fail(name, 0, NOT_PERMITTED)
    cache = fake_cuda.cache(exportable_pages=True)
    run(cache, ids(BASE))
    assert (fake_cuda.count("handles") > 1, fake_cuda.count("exportable handles")) == (True, 0)
    del cache
    fake_cuda.verify_nothing_is_left()


def test_a_full_gpu_does_not_look_like_one_that_exports_nothing(fake_cuda: FakeCuda) -> None:
    fake_cuda.support(POSIX_HANDLES)
    fake_cuda.fail("cuMemCreate", 0, OUT_OF_MEMORY)
    cache = fake_cuda.cache(exportable_pages=True)
    assert fake_cuda.count("exportable handles") == 1
    del cache
    fake_cuda.verify_nothing_is_left()


def test_everything_goes_with_the_cache(fake_cuda: FakeCuda) -> None:
    """Live requests, stale mappings and copied pages included. The tensors keep it until they go."""
    cache = fake_cuda.cache()
    run(cache, ids(BASE))
    live = [Request(cache, ids(BASE + letter)) for letter in "xyz"]
    Request(cache, ids("stale")).abort()
    tensor = cache.tensor(0, [4], [1], "uint8")
    assert fake_cuda.count("mappings") > 8
    del live, cache
    assert fake_cuda.count("reservations") == 2, "the arena and the sources of copies"
    del tensor
    fake_cuda.verify_nothing_is_left()


# ---- errors


def test_no_driver_is_installed() -> None:
    with pytest.raises(DriverError, match=r"libnothing.*no CUDA driver is installed"):
        KVCache(
            driver="cuda",
            cuda_library="libnothing.so.1",
            page_bytes=0,
            token_bytes=64,
            slots=2,
            slot_tokens=64,
            budget_pages=4,
        )


def test_a_driver_that_is_too_old(compile_fake_cuda: Callable[..., Path]) -> None:
    library = str(compile_fake_cuda("FAKE_CUDA_OLD"))
    with pytest.raises(DriverError, match=r"cuMemSetAccess failed: this CUDA driver lacks.*11\.2"):
        KVCache(
            driver="cuda", cuda_library=library, page_bytes=0, token_bytes=64, slots=2, slot_tokens=64, budget_pages=4
        )


def test_a_device_that_does_not_exist(fake_cuda: FakeCuda) -> None:
    with pytest.raises(DriverError, match="cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE"):
        fake_cuda.cache(device=7)


def test_a_device_without_virtual_memory(fake_cuda: FakeCuda) -> None:
    fake_cuda.support(VIRTUAL_MEMORY, False)
    with pytest.raises(DriverError, match="device 1 has no virtual memory management; serve without"):
        fake_cuda.cache(device=1)
    fake_cuda.verify_nothing_is_left()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (2, "lower --mem-fraction-static"),
        (101, "CUDA_VISIBLE_DEVICES"),
        (719, "start it again"),
        (801, r"D \(page 1 of 2, at page index 16 of 96,"),
    ],
)
def test_errors_say_what_to_do(fake_cuda: FakeCuda, code: int, says: str) -> None:
    cache = fake_cuda.cache()
    fake_cuda.fail("cuMemMap", 0, code)
    with pytest.raises(DriverError, match=f"^cuMemMap failed: CUDA.*{says}"):
        Request(cache, ids("x"))


def test_a_page_that_is_no_multiple_of_the_granularity(fake_cuda: FakeCuda) -> None:
    with pytest.raises(ValueError, match="granularity, 4096; got 6000: leave --vtensor-page-bytes out"):
        fake_cuda.cache(page_bytes=6000)


@pytest.mark.parametrize(
    "name",
    [
        "cuInit",
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent",
        "cuMemGetAllocationGranularity",
        "cuMemAddressReserve",
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
    ],
)
def test_a_cache_that_cannot_be_made_leaves_nothing(fake_cuda: FakeCuda, name: str) -> None:
    fake_cuda.fail(name)
    with pytest.raises(DriverError, match=f"{name}.* failed"):
        fake_cuda.cache()
    fake_cuda.verify_nothing_is_left()
    run(fake_cuda.cache(), ids(BASE))


def test_addresses_that_cannot_be_had(fake_cuda: FakeCuda) -> None:
    fake_cuda.fail("cuMemAddressReserve")
    with pytest.raises(DriverError, match="GiB of GPU addresses cannot be reserved; lower --max-running-requests"):
        fake_cuda.cache()


def test_out_of_memory_has_its_name_and_an_advice(fake_cuda: FakeCuda) -> None:
    fake_cuda.limit_memory(0)
    with pytest.raises(
        OutOfMemory, match=r"cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY, out of memory; .*lower --mem-fraction"
    ):
        fake_cuda.cache()


def test_only_a_lack_of_memory_is_lived_with(fake_cuda: FakeCuda) -> None:
    """Any other failure to create a page is an error."""
    cache = fake_cuda.cache()
    fake_cuda.limit_memory(1)
    with pytest.raises(OutOfPages):
        Request(cache, ids("x" * 12))
    assert cache.usage()["withheld_pages"] == 31
    fake_cuda.clear_failures()
    cache = fake_cuda.cache()
    fake_cuda.fail("cuMemCreate", 1)
    with pytest.raises(DriverError, match="cuMemCreate failed"):
        Request(cache, ids("x" * 12))
    assert cache.usage()["withheld_pages"] == 0


def test_an_error_without_a_name_has_its_number(fake_cuda: FakeCuda) -> None:
    cache = fake_cuda.cache()
    fake_cuda.fail("cuMemMap", 0, 719)
    with pytest.raises(DriverError, match="cuMemMap failed: CUDA error 719"):
        Request(cache, ids("x"))


def unchanged(cache: KVCache) -> dict[str, object]:
    usage = cache.usage()
    return {name: usage[name] for name in usage if name not in ("created_pages", "free_pages", "mapping_runs")}


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("cuCtxPushCurrent", 4),
        ("cuMemCreate", 1),
        ("cuMemUnmap", 2),
        ("cuMemMap", 6),
        ("cuMemSetAccess", 3),
        ("cuMemAddressReserve", 1),
        ("cuMemcpyDtoDAsync", 1),
        ("cuMemsetD8Async", 1),
    ],
)
def test_a_bind_that_fails_half_way_is_undone(fake_cuda: FakeCuda, name: str, calls: int) -> None:
    """A bind that replaces two stale pages, keeps a third, maps free ones and a new one, and copies a tail, with a
    failure at every one of its calls: what others have is as it was, and the bind can be repeated."""
    for successes in range(calls + 1):
        cache = fake_cuda.cache(slots=3)
        first, second = Request(cache, ids("x" * 12)), Request(cache, ids("y" * 12))
        second.abort()
        first.abort()
        run(cache, ids("bbbbccccdd"))
        extender = Request(cache, ids("bbbbccccddX"))
        before = unchanged(cache)
        fake_cuda.reset()
        fake_cuda.fail(name, successes)
        if successes < calls:
            with pytest.raises(DriverError, match=name):
                Request(cache, ids("bbbbccccddYYYYYYYYYYYYYY"))
            assert unchanged(cache) == before
            assert fake_cuda.count("pushed contexts") == 0
            cache.check()
            extender.verify()
        request = Request(cache, ids("bbbbccccddYYYYYYYYYYYYYY"))
        fake_cuda.clear_failures()
        assert (request.slot, request.tail) == (second.slot, "copied")
        request.verify()
        extender.verify()
        request.abort()
        extender.abort()
        del cache, request, extender, first, second  # before the next failure is prepared
        fake_cuda.verify_nothing_is_left()


@pytest.mark.parametrize(("name", "successes"), [("cuMemMap", 1), ("cuMemSetAccess", 0), ("cuMemSetAccess", 1)])
def test_a_growth_that_fails_half_way_is_undone(fake_cuda: FakeCuda, name: str, successes: int) -> None:
    cache = fake_cuda.cache()
    one, two = Request(cache, ids("aaaa")), Request(cache, ids("bbbb"))
    mapped = fake_cuda.count("mappings")
    before = unchanged(cache)
    fake_cuda.fail(name, successes)
    with pytest.raises(DriverError, match=name):
        cache.grow(ints(one.slot, two.slot), ints(8, 8))
    assert unchanged(cache) == before
    assert fake_cuda.count("mappings") == mapped
    one.append(ids("cccc"))
    two.append(ids("dddd"))
    for it in one, two:
        it.verify()
        it.abort()


@pytest.mark.parametrize("name", ["cuMemUnmap", "cuMemRelease"])
@pytest.mark.parametrize("successes", range(4))
def test_a_trim_that_fails_half_way_can_be_repeated(fake_cuda: FakeCuda, name: str, successes: int) -> None:
    """With pages that were sources of copies among them."""
    cache = fake_cuda.cache()
    run(cache, ids(BASE))
    for it in [Request(cache, ids(BASE + letter)) for letter in "xyz"]:
        it.abort()
    cache.evict(100)
    fake_cuda.fail(name, successes)
    with pytest.raises(DriverError, match=name):
        cache.trim()
    cache.check()
    cache.trim()
    assert fake_cuda.count("handles") == fake_cuda.count("mappings") == 1
    run(cache, ids(BASE))


@pytest.mark.parametrize("successes", range(3))
def test_shedding_that_fails_half_way_leaves_true_mappings(fake_cuda: FakeCuda, successes: int) -> None:
    """Some pages of the idle slot are unmapped by then. Its conversation returns: they must be mapped again."""
    cache = fake_cuda.cache(slots=4, mapping_limit=6)
    run(cache, ids("aaaabbbbcccc"), "a")
    other = Request(cache, ids("xxxx"), namespace="x")
    fake_cuda.fail("cuMemUnmap", successes)
    with pytest.raises(DriverError, match="cuMemUnmap"):
        Request(cache, ids("yyyy"), namespace="y")
    cache.check()
    again = Request(cache, ids("aaaabbbbcccc"), namespace="a")
    assert again.matched == 12
    again.verify()
    other.verify()
    again.abort()
    other.abort()


@pytest.mark.parametrize(("name", "code"), [("cuMemMap", OUT_OF_MEMORY), ("cuMemSetAccess", OUT_OF_MEMORY)])
def test_no_memory_for_a_mapping(fake_cuda: FakeCuda, name: str, code: int) -> None:
    """It has an error of its own, since it is worth trying again; nothing is left of the attempt."""
    cache = fake_cuda.cache()
    before = unchanged(cache)
    fake_cuda.fail(name, 1 if name == "cuMemMap" else 0, code)
    with pytest.raises(OutOfMemory, match=name):
        Request(cache, ids("x" * 12))
    assert unchanged(cache) == before
    assert fake_cuda.count("mappings") == 1
    cache.check()
    Request(cache, ids("x" * 12)).verify()


@pytest.mark.parametrize(("name", "calls"), [("cuMemMap", 2), ("cuMemSetAccess", 2)])
def test_no_memory_for_a_bind_that_copies(fake_cuda: FakeCuda, name: str, calls: int) -> None:
    """For the mapping of the page it takes, or for that through which the tail's page is read."""
    for successes in range(calls):
        cache = fake_cuda.cache()
        run(cache, ids(BASE))
        extender = Request(cache, ids(BASE + "x"))
        before = unchanged(cache)
        fake_cuda.reset()
        fake_cuda.fail(name, successes, OUT_OF_MEMORY)
        with pytest.raises(OutOfMemory, match=name):
            Request(cache, ids(BASE + "y"))
        assert unchanged(cache) == before
        cache.check()
        another = Request(cache, ids(BASE + "y"))
        assert another.tail == "copied"
        another.verify()
        extender.verify()
