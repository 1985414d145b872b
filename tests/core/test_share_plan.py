# SPDX-License-Identifier: Apache-2.0
"""The plan of tree-aware decode: what requests share, level by level, and the buffer that a kernel reads."""

import random
from array import array
from collections.abc import Callable

import numpy as np
import pytest
from core_harness import MakeCache, Memory, Request, ids, ints, pattern, prefix_hashes, run
from core_plans import PADDING, Planner, cheapest

from vt_sglang._core import KVCache, SharePlan

Decoding = Callable[..., Request]

WORD = 5  # tokens for which a letter stands, where segments have to be long enough to pay


def words(text: str) -> array:
    """Each letter so many times."""
    return ids("".join(letter * WORD for letter in text))


@pytest.fixture
def cache(make_cache: MakeCache) -> KVCache:
    """Four tokens a page."""
    return make_cache(slots=10, slot_tokens=128, budget_pages=200)


@pytest.fixture
def decoding(cache: KVCache) -> Decoding:
    """Starts requests that have recorded their prompts and go on to decode."""

    def start(text: str | array, namespace: str | None = None) -> Request:
        request = Request(cache, ids(text) if isinstance(text, str) else text, namespace=namespace)
        request.record()
        request.append(ids("!"))
        return request

    return start


def verify(planner: Planner, batch: list[Request | None]) -> None:
    """Holds for requests that have recorded all but their last token; None is padding."""
    planner.verify([prefix_hashes(it.namespace, it.ids[:-1]) if it else [] for it in batch])


def plan(cache: KVCache, batch: list[Request | None], tile: int = 4, workers: int = 5, **limits: int) -> Planner:
    planner = Planner(cache, **limits)
    assert planner.update([it.slot if it else PADDING for it in batch], tile, workers)
    verify(planner, batch)
    return planner


# ---- what is shared


def test_nothing_shared(cache: KVCache, decoding: Decoding) -> None:
    batch = [decoding("abc"), decoding("bcd"), None, decoding("abc", "other"), None]
    planner = plan(cache, batch)
    assert planner.tasks == []
    assert planner.own_starts == [0] * 5
    assert planner.plan.facts() == {"tasks": 0, "tiles": 0, "places": 0, "tokens_read": 0, "tokens_saved": 0}


@pytest.mark.parametrize("batch", [[], [None], [None, None]])
def test_empty_batches(cache: KVCache, batch: list[None]) -> None:
    assert plan(cache, batch).tasks == []


def test_one_level(cache: KVCache, decoding: Decoding) -> None:
    batch = [decoding("system A"), decoding("system B"), None, decoding("system C"), decoding("else")]
    planner = plan(cache, batch)
    assert planner.shared() == [(0, 7, {batch[0].slot, batch[1].slot, batch[3].slot})]
    assert planner.own_starts == [7, 7, 0, 7, 0]
    assert planner.plan.facts()["tokens_saved"] == 14


def test_three_levels_with_forks(cache: KVCache, decoding: Decoding) -> None:
    """A trunk, a fork of it, and a request that ends where others part."""
    batch = [decoding(words(text)) for text in ("abc", "abcde", "abcdef", "abcdeg", "abch", "x")]
    slots = [it.slot for it in batch]
    planner = plan(cache, batch, members_per_task=8)
    assert planner.shared() == [(0, 15, set(slots[:5])), (15, 25, set(slots[1:4]))]
    batch += [decoding(words("abcdef"))]
    slots = [it.slot for it in batch]
    planner = plan(cache, batch, members_per_task=8)
    assert planner.shared() == [
        (0, 15, {*slots[:5], slots[6]}),
        (15, 25, {*slots[1:4], slots[6]}),
        (25, 30, {slots[2], slots[6]}),
    ]
    assert planner.own_starts == [15, 25, 30, 25, 15, 0, 30]
    assert [len(it) for it in planner.levels] == [1, 2, 3, 2, 1, 0, 3]


def test_sharing_is_by_content(cache: KVCache) -> None:
    """Two that computed the same at the same time have pages of their own, and read one copy together."""
    one, other = Request(cache, ids("the same")), Request(cache, ids("the same"))
    assert set(cache.slot_pages(one.slot)).isdisjoint(cache.slot_pages(other.slot))
    assert one.record()[1:] == (False, 8)
    assert other.record()[1:] == (True, 0)
    for request in (one, other):
        request.append(ids("!"))
    planner = plan(cache, [one, other])
    assert planner.shared() == [(0, 8, {one.slot, other.slot})]
    (task,) = planner.tasks
    for it in (one, other):
        expected = pattern(prefix_hashes(None, it.ids[:8]), cache.token_bytes)
        assert np.array_equal(Memory(cache).tokens(task.slot, 0, 8), expected)


def test_forks_of_a_live_request(cache: KVCache, decoding: Decoding) -> None:
    """Parallel sampling: the samples match all of the prompt but its last token, and share that too once they have
    recorded it. The token that each decodes is its own."""
    prompt = words("ab")
    first = decoding(prompt)
    forks = []
    for _ in range(2):
        node, matched = cache.match(None, prompt, len(prompt) - 1)
        cache.lock(node)
        slot = cache.bind(None, node, len(prompt))[0]
        forks.append(slot)
        assert matched == 9
    slots = [first.slot, *forks]
    planner = Planner(cache)
    assert planner.update(slots)
    assert planner.own_starts == [9, 9, 9]
    for fork in forks:
        cache.record(fork, prompt)
        cache.grow(ints(fork), ints(11))
    assert planner.update(slots)
    assert planner.own_starts == [10, 10, 10]
    planner.verify([prefix_hashes(None, prompt)] * 3)


def test_a_row_keeps_its_last_token(cache: KVCache) -> None:
    """Also where all of it is recorded: a decoding request computes at least one."""
    batch = [Request(cache, ids("abcdef")) for _ in range(3)]
    for it in batch:
        it.record()
    planner = Planner(cache)
    planner.update([it.slot for it in batch])
    assert planner.own_starts == [5, 5, 5]
    planner.verify([prefix_hashes(None, ids("abcde"))] * 3)


def test_growing_past_what_is_recorded_makes_another_plan(cache: KVCache) -> None:
    """The token that was the last is now shared too."""
    batch = [Request(cache, ids("abcdef")) for _ in range(3)]
    for it in batch:
        it.record()
    planner, slots = Planner(cache), [it.slot for it in batch]
    planner.update(slots)
    for it in batch:
        it.append(ids("!"))
    assert planner.update(slots)
    assert planner.own_starts == [6, 6, 6]
    for it in batch:
        it.append(ids("?"))
    assert not planner.update(slots)


def test_before_anything_is_recorded(cache: KVCache, decoding: Decoding) -> None:
    """A request shares what it was bound along, though it is still being computed."""
    trunk = decoding("system prompt")
    bound = Request(cache, ids("system message"), room=1)
    planner = Planner(cache)
    planner.update([bound.slot, trunk.slot])
    assert planner.own_starts == [7, 7]


def test_prefixes_that_end_anywhere(cache: KVCache, decoding: Decoding) -> None:
    """Inside pages of four tokens, and inside tiles."""
    trunk = "0123456789abcdefghijklmnopq"
    batch = [decoding(trunk[:length] + end) for length, end in ((7, "A"), (7, "B"), (19, "C"), (27, "D"), (27, "E"))]
    for tile in (1, 3, 4, 64):
        planner = plan(cache, batch, tile, members_per_task=8)
        assert planner.own_starts == [7, 7, 19, 27, 27]


# ---- when plans change


def test_a_plan_holds_while_the_batch_decodes_on(cache: KVCache, decoding: Decoding) -> None:
    run(cache, ids("else"))
    batch = [decoding("system A"), decoding("system B")]
    slots = [it.slot for it in batch]
    planner = plan(cache, batch)
    before = planner.buffer.copy()
    for it in batch:
        it.append(ids("more"))
    cache.match(None, ids("sys"))  # splits a node
    assert cache.evict(1) == 4
    assert not planner.update(slots)
    assert np.array_equal(planner.buffer, before)
    assert planner.update(slots, tile=8)
    assert planner.update(slots, tile=8, workers=2)
    assert not planner.update(slots, tile=8, workers=2)
    assert planner.update(slots[::-1], tile=8, workers=2)


def test_joining_and_leaving(cache: KVCache, decoding: Decoding) -> None:
    batch = [decoding("system A"), decoding("system B")]
    planner = Planner(cache)
    assert planner.update([it.slot for it in batch])
    batch.append(decoding("system A, more"))
    assert planner.update([it.slot for it in batch])
    assert planner.shared() == [(0, 7, {it.slot for it in batch})]
    assert planner.update([batch[0].slot])
    assert planner.tasks == []
    batch.pop(1).finish()
    assert planner.update([it.slot for it in batch])
    assert planner.own_starts == [8, 8]


def test_a_slot_that_is_used_again(cache: KVCache, decoding: Decoding) -> None:
    """The same slots with another request are another batch."""
    stays, leaves = decoding("system A"), decoding("system B")
    planner = Planner(cache)
    planner.update([stays.slot, leaves.slot])
    leaves.finish()
    comes = decoding("system B, again")
    assert comes.slot == leaves.slot
    assert planner.update([stays.slot, comes.slot])


def test_eviction_beneath(cache: KVCache, decoding: Decoding) -> None:
    """What the tree has forgotten is not shared any more; what is left is."""
    batch = [decoding(words(text)) for text in ("abc", "abc", "abd")]
    assert plan(cache, batch).own_starts == [15, 15, 10]
    cache.evict(200)
    planner = Planner(cache)
    planner.update([it.slot for it in batch])
    planner.verify([prefix_hashes(None, it.ids[:-1]) for it in batch])
    assert planner.own_starts == [15, 15, 10]  # the second is bound along all of it, which locks it for the first too
    batch.pop(1).abort()
    cache.evict(200)
    assert plan(cache, batch).own_starts == [10, 10]
    late = decoding(words("abc"))
    assert plan(cache, [batch[0], late]).own_starts == [10, 10]  # the tree does not know that the first has it too
    batch[0].record(15)
    assert plan(cache, [batch[0], late]).own_starts == [15, 15]


def test_the_same_calls_make_the_same_plan(make_cache: MakeCache) -> None:
    """As every rank of a tensor-parallel server must."""
    buffers = []
    for _ in range(2):
        cache = make_cache(slots=10, slot_tokens=128, budget_pages=200)
        source = random.Random(3)
        batch = []
        for _ in range(9):
            request = Request(cache, ids("".join(source.choice("ab") for _ in range(source.randrange(1, 9)))), room=1)
            request.record()
            batch.append(request.slot)
        planner = Planner(cache, max_batch=10)
        planner.update(batch)
        buffers.append(planner.buffer)
    assert np.array_equal(*buffers)


# ---- what pays


@pytest.mark.parametrize(("least_saved", "pays"), [(1, True), (8, True), (9, False), (128, False)])
def test_a_member_must_save_so_many_tokens(cache: KVCache, decoding: Decoding, least_saved: int, pays: bool) -> None:
    """Two that share 16 tokens save 8 each."""
    batch = [decoding("0123456789abcdefA"), decoding("0123456789abcdefB")]
    assert bool(plan(cache, batch, least_saved=least_saved).tasks) == pays


def test_a_level_that_does_not_pay_is_read_by_those_below(cache: KVCache, decoding: Decoding) -> None:
    """Two conversations share one token: each reads it along with its own."""
    batch = [decoding("$" + 20 * letter + end) for letter in "ab" for end in "123"]
    planner = plan(cache, batch, least_saved=2)
    slots = [it.slot for it in batch]
    assert planner.shared() == sorted([(0, 21, set(slots[:3])), (0, 21, set(slots[3:]))])
    assert planner.own_starts == [21] * 6


def test_a_deep_level_that_does_not_pay_is_their_own(cache: KVCache, decoding: Decoding) -> None:
    batch = [decoding(20 * "$" + letter + end) for letter in "ab" for end in "123"]
    planner = plan(cache, batch, least_saved=2, members_per_task=8)
    assert planner.shared() == [(0, 20, {it.slot for it in batch})]


@pytest.mark.parametrize("seed", range(30))
def test_no_plan_is_cheaper(make_cache: MakeCache, seed: int) -> None:
    """On random trees, with segments long and short."""
    source = random.Random(seed)
    cache = make_cache(64, slots=26, slot_tokens=400, budget_pages=2000)
    sequences: list[list[int]] = [[]]
    batch = []
    for _ in range(source.randrange(2, 26)):
        base = source.choice(sequences)
        cut = base[: source.randrange(len(base) + 1)] if source.random() < 0.5 else base
        new = [source.randrange(3) for _ in range(source.choice((0, 1, 3, 10, 40)))]
        sequences.append((cut + new)[:390])
        request = Request(cache, sequences[-1], room=1, write=False)
        request.record()
        batch.append(request)
    source.shuffle(batch)
    prefixes = [prefix_hashes(None, it.ids) for it in batch]
    for _ in range(10):
        planner = Planner(
            cache,
            max_batch=26,
            max_workers=20,
            members_per_task=(members := source.choice((2, 3, 4, 16))),
            members_per_read=members * source.choice((1, 4)),
            max_levels=26,
            least_saved=source.choice((1, 2, 5, 10, 30)),
        )
        planner.update([it.slot for it in batch], source.choice((1, 4, 16)), source.randrange(1, 20))
        planner.verify(prefixes)
        least = cheapest(prefixes, planner.least_saved, planner.members_per_read)
        assert planner.cost([len(it) for it in prefixes]) == least


# ---- limits


def test_members_of_a_task(cache: KVCache, decoding: Decoding) -> None:
    """Too many are shared out evenly, and all read the same slot."""
    batch = [decoding("system" + letter) for letter in "ABCDEFGHI"]
    planner = plan(cache, batch, members_per_task=4, max_batch=9)
    assert sorted(it.count for it in planner.tasks) == [3, 3, 3]
    assert len({it.slot for it in planner.tasks}) == 1
    assert planner.plan.facts()["tokens_read"] == 18


@pytest.mark.parametrize("levels", range(1, 6))
def test_levels(cache: KVCache, decoding: Decoding, levels: int) -> None:
    """The deepest stay the rows' own."""
    batch = [decoding(words("abcd"[:depth]) + ids(str(end))) for end, depth in enumerate((1, 2, 3, 4, 4))]
    planner = plan(cache, batch, max_levels=levels, members_per_task=8)
    assert planner.own_starts == [WORD * min(depth, levels) for depth in (1, 2, 3, 4, 4)]


def test_places(cache: KVCache, decoding: Decoding) -> None:
    """Where there are too few for the partial results, the deepest levels go; one always fits."""
    batch = [decoding(words("abcde"[:depth]) + ids(str(end))) for end, depth in enumerate((1, 2, 3, 4, 5, 5))]
    limits = {"max_batch": 6, "max_workers": 2, "members_per_task": 6}
    wanted = plan(cache, batch, 1, 2, **limits).plan.facts()["places"]
    least = 6 + 6
    assert wanted > least
    depths = set()
    for places in range(least, wanted + 1):
        planner = plan(cache, batch, 1, 2, max_places=places, **limits)
        assert planner.plan.max_places == places
        depths.add(int(planner.buffer[5]))
    assert len(depths) > 1
    assert 0 not in depths


def test_bounds(cache: KVCache) -> None:
    planner = Planner(cache, max_batch=64, max_workers=100, members_per_task=16, max_levels=3)
    assert planner.plan.max_places == 64 * 3 + 99 * 16
    assert planner.plan.max_tasks == 63 + 64 * 3 // 16
    plan = planner.plan
    offsets = [plan.tasks_at, plan.order_at, plan.positions_at, plan.own_starts_at, plan.row_tasks_at]
    assert np.diff([*offsets, plan.runs_at, plan.size]).tolist() == [75 * 8, 64, 64, 64, 64 * 3, 100 * 4]
    assert plan.tasks_at == 8


def test_a_plan_keeps_its_cache() -> None:
    planner = Planner(KVCache(driver="host", page_bytes=4096, token_bytes=64, slots=3, slot_tokens=64, budget_pages=4))
    assert planner.update([PADDING])


# ---- bad arguments


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_batch": 0}, "max_batch must be 1 to 65536, not 0"),
        ({"max_workers": 0}, "max_workers must be 1 to 65536, not 0"),
        ({"max_workers": 2**40}, "max_workers must be 1 to 65536, not 1099511627776"),
        ({"members_per_task": 1}, "members_per_task must be 2 to 65536, not 1"),
        ({"members_per_task": 4, "members_per_read": 3}, "members_per_read must be 4 to 65536, not 3"),
        ({"max_levels": 0}, "max_levels must be 1 to 65536, not 0"),
        ({"least_saved": 0}, "least_saved must be positive"),
        ({"max_places": 23}, "max_places must be at least 24, what one level takes, not 23"),
    ],
)
def test_limits_that_cannot_be(cache: KVCache, limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Planner(cache, **limits)


def test_what_is_no_batch(cache: KVCache, decoding: Decoding) -> None:
    slot = decoding("abc").slot
    planner = Planner(cache, max_batch=2, max_workers=4)
    before = planner.buffer.copy()
    for slots, tile, workers, message in (
        ([slot, slot], 4, 4, f"slot {slot} is named twice"),
        ([slot, 9], 4, 4, "slot 9 is not live"),
        ([slot, 99], 4, 4, "slot 99 is not live"),
        ([-1], 4, 4, "slot out of range: -1"),
        ([slot, 0, 0], 4, 4, "3 requests in a plan made for 2"),
        ([slot], 0, 4, "tiles of 0 tokens"),
        ([slot], 4, 0, "1 to 4 workers is asked for 0"),
        ([slot], 4, 5, "1 to 4 workers is asked for 5"),
    ):
        with pytest.raises(ValueError, match=message):
            planner.update(slots, tile, workers)
    assert np.array_equal(planner.buffer, before)
    assert planner.update([slot, 0], 4, 4)


def test_what_is_no_buffer(cache: KVCache) -> None:
    plan = SharePlan(cache, max_batch=2, max_workers=4, members_per_task=4)
    with pytest.raises(ValueError, match=f"the buffer has 5 integers, and the plan {plan.size}"):
        plan.update(ints(0), np.zeros(5, dtype=np.int32), 4, 4)
    read_only = np.zeros(plan.size, dtype=np.int32)
    read_only.flags.writeable = False
    for buffer in (
        np.zeros(plan.size, dtype=np.int64),
        np.zeros((plan.size, 1), dtype=np.int32),
        np.zeros(2 * plan.size, dtype=np.int32)[::2],
        read_only,
        None,
    ):
        with pytest.raises(TypeError):
            plan.update(ints(0), buffer, 4, 4)  # type: ignore[arg-type]
