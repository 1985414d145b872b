# SPDX-License-Identifier: Apache-2.0
"""How prefill attention on Hopper (prefill_hopper.py) is dealt out to multiprocessors.

The query rows of a request are cut into tiles of `ROWS`, and what such a tile sees into tiles of `TILE` tokens. A row
tile and a KV head are an item; a program a multiprocessor takes items by turns, forth and back (0 1 2 2 1 0 0 1 ...),
heaviest first, so that all have about the same to do. Where items are too few for that, the tokens of each are divided
over several (split-KV), whose partial results a second kernel merges (prefill_merge.py).

All is decided on the host, which knows a prefill's lengths; nothing waits for the device. (In a batch that mixes
prefill with decode, SGLang's host may take a request for a token longer than it is: the kernel goes by the device's
lengths, and a tile too many is masked. Which requests it leaves out is the host's word alone.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .checks import Heads, at_least, on_hopper

ROWS = 128
"""Query rows of an item."""

TILE = 128
"""Tokens a step. A request with no more is not dealt out: it may be a token shorter than the host takes it for, and the
kernel reads whole tiles."""

FIELDS = 8
"""Numbers of a record: the request's first new token in q, its new tokens, its place in the batch; first row of the
tile; first tile of tokens and the one behind the last; place of the partial result, -1: it is the whole; one is left
free."""

_LEAST_PART = 4
"""Tiles of tokens of a part, at least: rows of one item see all but its last two whole, so each sees something of each
part."""

# Reckoned in the time of one step (1.8 us on an H100): what an item costs beside its steps, what a part costs beyond
# that, and the merge, for itself and for each part that it reads.
_ITEM, _PART, _MERGE, _MERGED_PART = 1.5, 0.7, 2.0, 0.015

_WEIGHTS = 8  # classes of weight, between which heavier items come first

_Numbers = npt.NDArray[np.int64]


class Dealt(NamedTuple):
    """A batch's work."""

    records: npt.NDArray[np.int32]
    """[records, FIELDS]: each is `kv_heads` items."""
    merges: npt.NDArray[np.int32]
    """[merges, FIELDS]: as records, of row tiles that were divided; in place of the tile behind the last stands the
    number of parts, and their places are one after the other from the one given."""
    places: int
    """Partial results of each KV head."""


def deal(new: Sequence[int], prefixes: Sequence[int], *, group: int, kv_heads: int, processors: int) -> Dealt:
    """Deal out a batch.

    Args:
        new: each request's new tokens.
        prefixes: each request's tokens before these.
        group: query heads of a KV head.
        kv_heads: of the model.
        processors: programs that run at once.
    """
    news = np.asarray(new, np.int64)
    lengths = news + np.asarray(prefixes, np.int64)
    starts = np.cumsum(news) - news
    row_tiles = np.where(lengths > TILE, -(-news * group // ROWS), 0)
    request = np.repeat(np.arange(len(news)), row_tiles)
    first_row = _counted(row_tiles) * ROWS
    last = np.minimum((first_row + ROWS - 1) // group, news[request] - 1)
    tiles = -(-((lengths - news)[request] + last + 1) // TILE)

    parts = _parts(tiles, kv_heads, processors)
    divided = parts > 1
    places = np.where(divided, parts, 0)
    first_place = np.cumsum(places) - places
    whose, part = np.repeat(np.arange(len(tiles)), parts), _counted(parts)
    begin, end = part * tiles[whose] // parts[whose], (part + 1) * tiles[whose] // parts[whose]
    place = np.where(divided[whose], first_place[whose] + part, -1)
    # Of those that weigh about the same, the ones that read the same tokens run side by side: the L2 cache holds what
    # a few requests have in a layer.
    steps = end - begin
    weight = steps * _WEIGHTS // (steps.max(initial=0) + 1)
    order = np.lexsort((-steps, part, request[whose], -weight))

    def records(whose: _Numbers, begin: _Numbers | int, end: _Numbers, place: _Numbers) -> npt.NDArray[np.int32]:
        its = request[whose]
        words = np.zeros((len(whose), FIELDS), np.int32)
        fields = (starts[its], news[its], its, first_row[whose], begin, end, place)
        for index, field in enumerate(fields):
            words[:, index] = field
        return words

    split = np.flatnonzero(divided)
    return Dealt(
        records(whose[order], begin[order], end[order], place[order]),
        records(split, 0, parts[split], first_place[split]),
        int(places.sum()),
    )


def _counted(counts: _Numbers) -> _Numbers:
    """0, 1, ... up to each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _parts(tiles: _Numbers, kv_heads: int, processors: int) -> _Numbers:
    """Into how many parts each row tile's `tiles` of tokens are divided: what is reckoned to be done first."""
    best = np.ones_like(tiles)
    if not 0 < len(tiles) * kv_heads < 4 * processors:
        return best
    least = _time(tiles, best, kv_heads, processors)
    share = tiles.sum() * kv_heads / processors
    if least <= 1.05 * share + _ITEM + _PART + _MERGE:  # the most that could be won is not worth the looking
        return best
    for rounds in range(1, 4):
        parts = np.clip((tiles * rounds / share).astype(np.int64), 1, np.maximum(tiles // _LEAST_PART, 1))
        time = _time(tiles, parts, kv_heads, processors)
        if time < least:
            best, least = parts, time
    return best


def _time(tiles: _Numbers, parts: _Numbers, kv_heads: int, processors: int) -> float:
    """When the last program is done, in steps."""
    divided = parts > 1
    costs = np.sort(np.repeat(tiles / parts + _ITEM + _PART * divided, parts * kv_heads))[::-1]
    rounds = -(-len(costs) // processors)
    turns = np.zeros((rounds, processors))
    turns.flat[: len(costs)] = costs
    turns[1::2] = turns[1::2, ::-1]
    merge = (_MERGE + _MERGED_PART * kv_heads * parts[divided].sum()) * divided.any()
    return float(turns.sum(0).max() + merge)


class HopperPlan:
    """What each program of a batch's prefill attention takes, for all layers with the same heads.

    Args:
        group: query heads of a KV head.
        kv_heads: of the model.
        head_dim: elements of a head.
        device: where the batch is.
        processors: programs that run at once, in place of the device's multiprocessors, which only a GPU has.

    Raises:
        ValueError: no kernel can take such heads, or there are no processors.
    """

    def __init__(
        self, *, group: int, kv_heads: int, head_dim: int, device: torch.device | str, processors: int | None = None
    ) -> None:
        self.heads = Heads.of(
            kv_heads=kv_heads, group=group, head_dim=head_dim, v_head_dim=head_dim, itemsize=2, device=device
        )
        self.group, self.kv_heads, self.head_dim = group, kv_heads, head_dim
        self.batch = self.tokens = 0
        """Requests of the batch that was dealt out last, and their new tokens."""
        self._device = torch.device(device)
        self.on_hopper = on_hopper(device)
        if processors is None:
            if self._device.type != "cuda":
                raise ValueError(f"processors is None, and should be a number for {self._device}, which is no GPU")
            processors = torch.cuda.get_device_properties(self._device).multi_processor_count
        at_least("processors", processors, 1)
        self.processors = processors
        self.items = self.merges = 0
        self.short_requests = self.short_tokens = 0
        """Requests no longer than a tile that have new tokens, and these tokens: not dealt out."""
        self.short = torch.empty(0, dtype=torch.int32, device=device)
        """[batch] int32: 1 for these requests."""
        self.records = self.merge_records = torch.empty(0, FIELDS, dtype=torch.int32, device=device)
        self.partial = torch.empty(0, ROWS, head_dim, device=device)
        self.partial_lse = torch.empty(0, ROWS, device=device)

    def update(self, new: Sequence[int], prefixes: Sequence[int]) -> None:
        """Deal out a batch.

        Args:
            new: each request's new tokens.
            prefixes: each request's tokens before these.

        Raises:
            ValueError: there is no request, or they differ in number.
        """
        at_least("the batch", len(new), 1)
        if len(prefixes) != len(new):
            raise ValueError(f"prefixes are of {len(prefixes)} requests, and should be of {len(new)}, as new")
        news = np.asarray(new, np.int64)
        self.batch, self.tokens = len(new), int(news.sum())
        short = (news > 0) & (news + np.asarray(prefixes, np.int64) <= TILE)
        self.short_requests, self.short_tokens = int(short.sum()), int(news[short].sum())
        dealt = deal(new, prefixes, group=self.group, kv_heads=self.kv_heads, processors=self.processors)
        self.items, self.merges = len(dealt.records) * self.kv_heads, len(dealt.merges)
        flags = np.zeros((-(-len(short) // FIELDS), FIELDS), np.int32)
        flags.flat[: len(short)] = short
        words = torch.from_numpy(np.concatenate([dealt.records, dealt.merges, flags]))
        if self._device.type == "cuda":
            words = words.pin_memory().to(self._device, non_blocking=True)
        self.records, self.merge_records, flags_there = words.split([len(dealt.records), self.merges, len(flags)])
        self.short = flags_there.view(-1)[: len(short)]
        if (places := dealt.places * self.kv_heads) > self.partial.shape[0]:
            self.partial = torch.empty(places, ROWS, self.head_dim, device=self._device)
            self.partial_lse = torch.empty(places, ROWS, device=self._device)
