# SPDX-License-Identifier: Apache-2.0
"""What a view's blocks form: stretches of blocks without a branch, and how much hangs on each."""

from dataclasses import dataclass
from typing import Any

from vt_sglang.events.messages import Name
from vt_sglang.events.view import Block, View


@dataclass(frozen=True)
class Stretch:
    """Blocks that follow one another, with no branch between them, and what is below."""

    start: int
    """Token position where it begins, in its path as far as that is known."""
    end: int
    blocks: int
    """In the stretch and in all that follows on it."""
    tokens: int
    """The same in tokens."""
    leaves: int
    """Paths that end below."""
    first_ids: list[Any]
    """Up to 16 token ids, from `start` on."""


@dataclass(frozen=True)
class Shape:
    """The tree that a view's blocks form."""

    roots: int
    leaves: int
    deepest_tokens: int
    deepest_blocks: int
    stretches: list[Stretch]
    """Those with most blocks, most first."""


def shape_of(view: View, most: int = 8) -> Shape:
    """Look through a view once: O(blocks)."""
    roots = list(view.roots())
    order = list(roots)  # parents before children
    depths: dict[Name, tuple[int, int]] = {root.name: (1, len(root.tokens)) for root in roots}
    for block in order:
        blocks, tokens = depths[block.name]
        for name in view.children.get(block.name, ()):
            child = view.blocks[name]
            depths[name] = (blocks + 1, tokens + len(child.tokens))
            order.append(child)
    below: dict[Name, list[int]] = {block.name: [1, len(block.tokens), 0] for block in order}
    for block in reversed(order):
        mine = below[block.name]
        if block.name not in view.children:
            mine[2] = 1
        if block.parent is not None and (above := below.get(block.parent)) is not None:
            for place, count in enumerate(mine):
                above[place] += count
    heads = [block for block in order if _is_head(view, block)]
    heads.sort(key=lambda head: below[head.name][0], reverse=True)
    return Shape(
        roots=len(roots),
        leaves=sum(below[root.name][2] for root in roots),
        deepest_tokens=max((tokens for _, tokens in depths.values()), default=0),
        deepest_blocks=max((blocks for blocks, _ in depths.values()), default=0),
        stretches=[_stretch(view, head, depths, below[head.name]) for head in heads[:most]],
    )


def _is_head(view: View, block: Block) -> bool:
    """Whether a stretch begins here: at a root, or behind a branch."""
    return block.parent not in view.blocks or len(view.children[block.parent]) > 1


def _stretch(view: View, head: Block, depths: dict[Name, tuple[int, int]], below: list[int]) -> Stretch:
    last, first_ids = head, list(head.tokens[:16])
    while len(following := view.children.get(last.name, ())) == 1:
        last = view.blocks[next(iter(following))]
        first_ids += last.tokens[: 16 - len(first_ids)]
    start = depths[head.name][1] - len(head.tokens)
    return Stretch(start, depths[last.name][1], below[0], below[1], below[2], first_ids)
