# SPDX-License-Identifier: Apache-2.0
"""A view of a cache, and the shape of what is in it."""

from event_world import CLEARED, removed, stored

from vt_sglang.events.families import shape_of
from vt_sglang.events.messages import Batch, BlockStored, Missed, Restarted, decode
from vt_sglang.events.view import View


def _view(*events: object) -> View:
    view = View()
    view.update(Batch(0, 0.0, list(events)))  # type: ignore[arg-type]
    return view


def test_blocks_come_and_go() -> None:
    view = _view(stored(1), stored(2, 1), stored(3, 1), stored(4, 3), removed(4, 3))
    assert set(view.blocks) == {1, 2}
    assert view.children == {None: {1}, 1: {2}}
    assert view.tokens == 4
    assert view.path(2) == [10, 11, 20, 21]
    view.apply(CLEARED)
    assert (view.blocks, view.children, view.tokens) == ({}, {}, 0)
    assert (view.changes.stored, view.changes.removed, view.changes.cleared) == (4, 2, 1)


def test_an_event_of_several_blocks_is_a_chain() -> None:
    view = _view(BlockStored([5, 6, 7], None, list(range(6)), 2, None, "GPU"))
    assert [view.blocks[name].parent for name in (5, 6, 7)] == [None, 5, 6]
    assert view.path(7) == [0, 1, 2, 3, 4, 5]


def test_what_is_known_or_unknown_already_changes_nothing() -> None:
    view = _view(stored(1), stored(1), removed(9), removed(1), removed(1))
    assert (view.blocks, view.tokens) == ({}, 0)
    assert (view.changes.stored_again, view.changes.removed_unknown) == (1, 2)


def test_tiers_are_counted_apart() -> None:
    """A block is in the cache as long as one tier has it."""
    view = _view(stored(1), stored(1, medium="CPU_PINNED"), removed(1))
    assert set(view.blocks) == {1}
    view.apply(removed(1, medium="CPU_PINNED"))
    assert view.blocks == {}


def test_blocks_of_unknown_parents_are_kept() -> None:
    view = _view(stored(3, 2), stored(4, 3))
    assert view.orphans() == 1
    assert [root.name for root in view.roots()] == [3]
    view.apply(stored(2))
    assert view.orphans() == 0
    assert view.path(4) == [20, 21, 30, 31, 40, 41]
    view.apply(removed(2))
    assert [root.name for root in view.roots()] == [3]


def test_a_gap_leaves_doubt_until_the_cache_is_cleared() -> None:
    view = _view(stored(1))
    view.update(Missed(3, 5))
    assert view.partial
    assert set(view.blocks) == {1}
    view.apply(CLEARED)
    assert not view.partial
    view.update(Missed(7, 8))
    view.update(Restarted())
    assert (view.partial, view.blocks) == (False, {})


def test_the_shape_of_a_tree() -> None:
    #  1 - 2 - 3 - 4        of two tokens each, and a second root
    #        \ 5 - 6
    #        \ 7
    view = _view(
        stored(1), stored(2, 1), stored(3, 2), stored(4, 3), stored(5, 2), stored(6, 5), stored(7, 2), stored(8)
    )
    shape = shape_of(view, most=3)
    assert (shape.roots, shape.leaves, shape.deepest_blocks, shape.deepest_tokens) == (2, 4, 4, 8)
    first = shape.stretches[0]
    assert (first.start, first.end, first.blocks, first.tokens, first.leaves) == (0, 4, 7, 14, 3)
    assert first.first_ids == [10, 11, 20, 21]
    assert sorted((it.start, it.end, it.blocks) for it in shape.stretches[1:]) == [(4, 8, 2), (4, 8, 2)]
    assert shape_of(View()).deepest_tokens == 0


def test_messages_of_others_are_read_too() -> None:
    """Fields that later releases add, and names that are bytes."""
    import msgspec

    event = ["BlockStored", [b"\1" * 32], None, [1, 2], 2, None, "GPU", "an adapter's name"]
    batch = decode(0, msgspec.msgpack.encode([1.5, [event, ["AllBlocksCleared"]], None]))
    assert (batch.time_s, len(batch.events)) == (1.5, 2)
    assert batch.events[0].block_hashes == [b"\1" * 32]  # type: ignore[union-attr]
