# SPDX-License-Identifier: Apache-2.0
"""The contents of a cache, rebuilt from its events."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vt_sglang.events.messages import AllBlocksCleared, Batch, BlockStored, Event, Missed, Name, Restarted, Update


@dataclass(slots=True)
class Block:
    """A block that is in the cache, in one tier (`media`) or more."""

    name: Name
    parent: Name | None
    """None: a path begins here. A parent that is not in the view may turn up later."""
    tokens: tuple[Any, ...]
    media: set[str | None]


@dataclass
class Changes:
    """What the events did to a view since it was made. Blocks that were there, or were not, are counted apart."""

    stored: int = 0
    removed: int = 0
    cleared: int = 0
    stored_again: int = 0
    removed_unknown: int = 0


@dataclass
class View:
    """The set of blocks, each with its tokens and the block before it.

    Blocks whose parent is unknown are kept: they are in the cache, and their parent may be reported later, or was
    missed. In the tree that they form they are roots.
    """

    blocks: dict[Name, Block] = field(default_factory=dict)
    children: dict[Name | None, set[Name]] = field(default_factory=dict)
    """By parent, whether or not it is in the view; None: paths' first blocks."""
    tokens: int = 0
    partial: bool = False
    """Events were missed: the view may have blocks that are gone and lack others, until the cache is next cleared."""
    changes: Changes = field(default_factory=Changes)

    def update(self, update: Update) -> None:
        """Take in what a subscriber hands out."""
        if isinstance(update, Batch):
            for event in update.events:
                self.apply(event)
        elif isinstance(update, Restarted):
            self.clear()
        elif isinstance(update, Missed):
            self.partial = True

    def apply(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, BlockStored):
            self._store(event)
        elif isinstance(event, AllBlocksCleared):
            self.changes.cleared += 1
            self.clear()
        else:
            for name in event.block_hashes:
                self._remove(name, event.medium)

    def clear(self) -> None:
        """No block is left, and nothing is in doubt."""
        self.blocks.clear()
        self.children.clear()
        self.tokens = 0
        self.partial = False

    def roots(self) -> Iterator[Block]:
        """Blocks that have none before them in the view."""
        return (block for block in self.blocks.values() if block.parent is None or block.parent not in self.blocks)

    def orphans(self) -> int:
        """Roots that have a parent, which is not known."""
        return sum(block.parent is not None for block in self.roots())

    def path(self, name: Name) -> list[Any]:
        """Token ids from the root of a block's path to the block's end. KeyError if it is not in the view."""
        pieces = []
        block: Block | None = self.blocks[name]
        while block is not None:
            pieces.append(block.tokens)
            block = None if block.parent is None else self.blocks.get(block.parent)
        return [token for piece in reversed(pieces) for token in piece]

    def _store(self, event: BlockStored) -> None:
        parent, size = event.parent_block_hash, event.block_size
        for index, name in enumerate(event.block_hashes):
            known = self.blocks.get(name)
            if known is None:
                tokens = tuple(event.token_ids[index * size : (index + 1) * size])
                self.blocks[name] = Block(name, parent, tokens, {event.medium})
                self.children.setdefault(parent, set()).add(name)
                self.tokens += len(tokens)
                self.changes.stored += 1
            elif event.medium in known.media:
                self.changes.stored_again += 1
            else:
                known.media.add(event.medium)
            parent = name

    def _remove(self, name: Name, medium: str | None) -> None:
        block = self.blocks.get(name)
        if block is None or medium not in block.media:
            self.changes.removed_unknown += 1
            return
        block.media.remove(medium)
        if block.media:
            return
        del self.blocks[name]
        siblings = self.children[block.parent]
        siblings.remove(name)
        if not siblings:
            del self.children[block.parent]
        self.tokens -= len(block.tokens)
        self.changes.removed += 1
