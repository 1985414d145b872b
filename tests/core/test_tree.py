# SPDX-License-Identifier: Apache-2.0
"""The radix tree: token-exact matches, splits, namespaces, duplicates."""

import random
from array import array

import pytest
from core_harness import Geometry, MakeCache, Request, ids, run

from vt_sglang._core import InvariantError, KVCache

RANDOM = random.Random(0)
LONG = 1400  # the tree compares in blocks of 512 tokens


def matched(cache: KVCache, text: str, namespace: str | None = None) -> int:
    return cache.match(namespace, ids(text))[1]


def test_an_empty_tree_matches_nothing(cache: KVCache) -> None:
    assert cache.match(None, ids("abc")) == (0, 0)
    assert cache.match(None, ids("")) == (0, 0)


def test_match_is_token_exact(make_cache: MakeCache, geometry: Geometry) -> None:
    """A prefix is found to the token, wherever it ends on a page."""
    cache = make_cache(geometry.token_bytes)
    run(cache, ids("abcdefgh"))
    for length in range(9):
        assert matched(cache, "abcdefgh"[:length]) == length
        assert matched(cache, "abcdefgh"[:length] + "zz") == length
    assert matched(cache, "abcdefghi") == 8
    assert matched(cache, "zabcdefgh") == 0


@pytest.mark.parametrize("place", [0, 1, 510, 511, 512, 513, 1023, 1024, 1025, LONG - 1])
def test_match_finds_the_first_difference_in_a_long_sequence(make_cache: MakeCache, place: int) -> None:
    cache = make_cache(64, slot_tokens=2048, budget_pages=64)
    run(cache, [7] * LONG)
    different = [7] * LONG
    different[place] = 8
    assert cache.match(None, _array(different))[1] == place
    run(cache, different)
    assert cache.match(None, _array(different))[1] == LONG


def _array(tokens: list[int]) -> object:
    return ids("".join(map(chr, tokens)))


def test_token_ids_are_64_bit_and_signed(cache: KVCache) -> None:
    tokens = [-1, 2**62, -(2**62), 0, 2**32]
    run(cache, tokens)
    again = Request(cache, [*tokens[:4], 2**33])
    assert again.matched == 4
    again.abort()


def test_limit_bounds_the_match(cache: KVCache) -> None:
    run(cache, ids("abcdefgh"))
    assert cache.match(None, ids("abcdefgh"), 5)[1] == 5
    assert cache.match(None, ids("abcdefgh"), 0) == (0, 0)
    assert cache.match(None, ids("abcdefgh"), 100)[1] == 8
    assert cache.match(None, ids("abcdefgh"), limit=None)[1] == 8


def test_namespaces_share_nothing(cache: KVCache) -> None:
    """None, the empty string, a string and a longer one with a NUL in it are four namespaces."""
    spaces = [None, "", "a", "a\0b"]
    requests = []
    for number, space in enumerate(spaces):
        assert matched(cache, "prompt", space) == 0
        requests.append(run(cache, ids("prompt" + "xyzw"[number]), space))
    for number, space in enumerate(spaces):
        assert matched(cache, "promptxyzw", space) == (7 if number == 0 else 6)
        again = Request(cache, ids("prompt" + "xyzw"[number]), namespace=space)
        assert again.matched == 7
        again.verify()
        again.abort()


def test_a_split_keeps_content_and_handles(make_cache: MakeCache, geometry: Geometry) -> None:
    """Matching part of a node splits it; the old handle still names the same end, the parts hold the same pages."""
    cache = make_cache(geometry.token_bytes)
    run(cache, ids("abcdefghij"))
    node, _ = cache.match(None, ids("abcdefghij"))
    pages = cache.path_pages(node)
    nodes = cache.usage()["nodes"]
    upper, length = cache.match(None, ids("abcd"))
    assert length == 4
    assert cache.usage()["nodes"] == nodes + 1
    assert cache.node_tokens(upper) == 4
    assert cache.node_tokens(node) == 10
    assert cache.path_pages(node) == pages
    assert cache.path_pages(upper) == pages[: geometry.pages_for(4)]
    assert cache.match(None, ids("abcdefghij")) == (node, 10)
    assert cache.usage()["nodes"] == nodes + 1, "a match that ends on a node splits nothing"
    cache.check()
    again = Request(cache, ids("abcdefghij"))
    again.verify()
    again.abort()


def test_a_split_of_a_locked_node_keeps_its_lock(cache: KVCache) -> None:
    run(cache, ids("abcdefgh"))
    node, _ = cache.match(None, ids("abcdefgh"))
    cache.lock(node)
    upper, _ = cache.match(None, ids("ab"))
    cache.check()
    cache.evict(100)
    assert cache.node_tokens(upper) == 2
    assert cache.node_tokens(node) == 8
    cache.unlock(node)
    cache.check()
    cache.evict(100)
    assert cache.usage()["tree_tokens"] == 0


def test_record_tells_what_it_added(cache: KVCache) -> None:
    request = Request(cache, ids("abcdefgh"))
    first, duplicate, added = request.record(3)
    assert (duplicate, added) == (False, 3)
    assert cache.node_tokens(first) == 3
    assert matched(cache, "abcdefgh") == 3
    second, duplicate, added = request.record()
    assert (duplicate, added) == (False, 5)
    assert cache.node_tokens(second) == 8
    assert request.record() == (second, False, 0)
    assert request.record(2)[1:] == (False, 0), "fewer tokens than before: they are recorded already"
    assert cache.usage()["tree_tokens"] == 8
    request.abort()


def test_record_grows_with_the_request(make_cache: MakeCache, geometry: Geometry) -> None:
    """Chunked prefill and decode: recorded piece by piece, on borders of pages and between them."""
    cache = make_cache(geometry.token_bytes)
    request = Request(cache, ids("a"))
    for letter in "bcdefghijkl":
        request.record()
        request.append(ids(letter))
        cache.check()
    request.verify()
    request.finish()
    assert cache.usage()["tree_tokens"] == 12
    again = Request(cache, ids("abcdefghijkl"))
    assert again.matched == 12
    again.verify()
    again.abort()


def test_the_first_of_two_duplicates_wins(make_cache: MakeCache, geometry: Geometry) -> None:
    """Two requests compute the same content side by side. The tree takes the first's pages; the second goes on with
    its own, and frees them when it ends."""
    cache = make_cache(geometry.token_bytes)
    first = Request(cache, ids("abcdefgh"))
    second = Request(cache, ids("abcdefgh"))
    own = cache.slot_pages(second.slot)
    assert set(own).isdisjoint(cache.slot_pages(first.slot))

    node, duplicate, added = first.record()
    assert (duplicate, added) == (False, 8)
    assert cache.path_pages(node) == cache.slot_pages(first.slot)
    assert second.record() == (node, True, 0)
    assert cache.slot_pages(second.slot) == own
    first.abort()

    second.append(ids("ijkl"))
    deeper, duplicate, added = second.record()
    assert (duplicate, added) == (True, 4), "part of its path is still the first's"
    assert cache.path_pages(deeper)[-1] == cache.slot_pages(second.slot)[-1]
    second.verify()
    second.abort()
    # What stays of the second's pages: those of the tokens that it added.
    assert cache.usage()["held_pages"] == 1 + len(set(cache.path_pages(node)) | set(cache.path_pages(deeper)))
    third = Request(cache, ids("abcdefghijkl"))
    assert third.matched == 12
    third.verify()
    third.abort()


def test_a_duplicate_alone_still_gets_its_pages(make_cache: MakeCache) -> None:
    """Chunked prefill beside a twin that is faster. Who locks what a duplicate recorded would pin the twin's pages
    beside its own, so every later record says duplicate too; the twin's pages can then be evicted in need."""
    cache = make_cache(budget_pages=5)
    slow, twin = Request(cache, ids("aaaabbbb")), Request(cache, ids("aaaabbbb"))
    twin.finish()
    for more in ("", "cccc", "dddd"):
        slow.append(ids(more))
        node, duplicate, _ = slow.record()
        assert duplicate
        if not duplicate:
            cache.lock(node)
    slow.verify()
    assert slow.record()[1], "also where there is nothing to add"
    slow.abort()
    again = Request(cache, ids("aaaabbbbccccdddd"))
    again.verify()
    again.abort()


def test_a_sequence_partly_in_the_tree_is_a_duplicate_and_is_continued(cache: KVCache) -> None:
    first, second = Request(cache, ids("abcdef")), Request(cache, ids("abcdXY"))
    first.record()
    _, duplicate, added = second.record()
    assert (duplicate, added) == (True, 2)
    assert cache.usage()["tree_tokens"] == 8
    for request in first, second:
        request.verify()
        request.abort()
    for text in "abcdef", "abcdXY":
        again = Request(cache, ids(text))
        assert again.matched == 6
        again.verify()
        again.abort()


@pytest.mark.parametrize(
    "tokens",
    [
        list(range(300)),
        [number << 56 for number in range(-100, 100)],
        [RANDOM.getrandbits(64) - 2**63 for _ in range(300)],
    ],
    ids=["neighbours", "high bits", "random"],
)
def test_many_sequences_begin_differently(make_cache: MakeCache, tokens: list[int]) -> None:
    """Hundreds of children of one node come and go in an order that has nothing to do with their tokens."""
    cache = make_cache(64, budget_pages=400)
    choice = random.Random(1)
    for _ in range(2):
        for token in tokens:
            run(cache, [token, 5])
        cache.check()
        order = choice.sample(tokens, len(tokens))
        for token in order:
            assert cache.match(None, array("q", [token, 5]))[1] == 2
        for gone, token in enumerate(order):
            assert cache.evict(1) == 2
            assert cache.match(None, array("q", [token, 5]))[1] == 0
            if gone % 29 == 0:
                cache.check()
        assert cache.usage()["nodes"] == 0


def test_handles_of_evicted_nodes_are_refused(cache: KVCache) -> None:
    """Every method that takes a node says so, also when the node's place was taken by another."""
    run(cache, ids("abcdefgh"))
    node, _ = cache.match(None, ids("abcdefgh"))
    cache.evict(100)
    run(cache, ids("xyzxyz"))
    for use in (
        lambda: cache.lock(node),
        lambda: cache.unlock(node),
        lambda: cache.bind(None, node, 8),
        lambda: cache.path_pages(node),
        lambda: cache.node_tokens(node),
    ):
        with pytest.raises(InvariantError, match=str(node)):
            use()
    for never in (1, 2**32, 2**64 - 1):
        with pytest.raises(InvariantError, match=str(never)):
            cache.lock(never)


def test_the_root_is_zero(cache: KVCache) -> None:
    cache.lock(0)
    cache.unlock(0)
    assert cache.path_pages(0) == []
    assert cache.node_tokens(0) == 0


def test_more_unlocks_than_locks_are_refused(cache: KVCache) -> None:
    run(cache, ids("abcdefgh"))
    node, _ = cache.match(None, ids("abcdefgh"))
    cache.lock(node)
    cache.unlock(node)
    with pytest.raises(InvariantError, match="unlocked more often"):
        cache.unlock(node)


def test_clear_forgets_everything(cache: KVCache) -> None:
    for space in (None, "a", "b"):
        run(cache, ids("abcdefgh"), space)
    cache.clear()
    usage = cache.usage()
    assert (usage["tree_tokens"], usage["nodes"], usage["held_pages"]) == (0, 0, 1)
    assert matched(cache, "abcdefgh", "a") == 0
    again = run(cache, ids("abcdefgh"), "a")
    assert again.matched == 0


def test_clear_is_refused_while_a_slot_is_live(cache: KVCache) -> None:
    run(cache, ids("abcdefgh"))
    request = Request(cache, ids("xyz"))
    with pytest.raises(InvariantError, match="1 slots are live"):
        cache.clear()
    assert matched(cache, "abcdefgh") == 8
    request.abort()


def test_clear_is_refused_as_a_whole_while_a_node_is_locked(cache: KVCache) -> None:
    """All or nothing: the sequences that are not locked stay, too."""
    run(cache, ids("abcdefgh"))
    run(cache, ids("xyzxyz"))
    node, _ = cache.match(None, ids("abcd"))
    cache.lock(node)
    before = cache.usage()
    with pytest.raises(InvariantError, match="locked"):
        cache.clear()
    assert cache.usage() == before
    assert matched(cache, "xyzxyz") == 6
    cache.unlock(node)
    cache.clear()
    assert cache.usage()["tree_tokens"] == 0


def test_a_match_leaves_room_to_grow(make_cache: MakeCache) -> None:
    """`total_tokens` cuts a match that, held, would leave too few pages: its tail and the copy of that tail would
    have to exist side by side. The request that was promised room then gets it."""
    cache = make_cache(1024, budget_pages=4)  # 16 tokens
    run(cache, ids("abcdefghijklmno"))  # 15: the tail is 3 tokens of the fourth page
    node, tokens = cache.match(None, ids("abcdefghijklmno"))
    assert tokens == 15
    # Held, these four pages would leave none for a copy of the tail.
    node, tokens = cache.match(None, ids("abcdefghijklmnX"), total_tokens=16)
    assert tokens == 12
    cache.lock(node)
    slot, tail, _, _ = cache.bind(None, node, 16)
    assert tail == "none"
    cache.release(slot)
    cache.unlock(node)
    assert cache.match(None, ids("abcdefghijklmno"), total_tokens=15)[1] == 12, "the lower part was evicted"


@pytest.mark.parametrize("length", range(1, 17))
@pytest.mark.parametrize("token_bytes", [1000, 1024, 1536])
def test_a_request_alone_always_reaches_its_total(make_cache: MakeCache, token_bytes: int, length: int) -> None:
    """Whatever is recorded, and however it ended, a match with `total_tokens` can be bound to that total."""
    cache = make_cache(token_bytes, budget_pages=4)
    total = Geometry(token_bytes).tokens_in(4)
    text = "abcdefghijklmnop"[: min(length, total)]
    for end in range(len(text) + 1):
        run(cache, ids(text))
        node, _ = cache.match(None, ids(text), end, total_tokens=total)
        cache.lock(node)
        slot = cache.bind(None, node, total)[0]
        cache.release(slot)
        cache.unlock(node)
