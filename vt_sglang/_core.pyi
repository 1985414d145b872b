# SPDX-License-Identifier: Apache-2.0
"""The C++ core: page pool, virtual tensors and radix tree under one lock.

Every method is all or nothing, may be called from any thread, and lets go of the GIL while it works. Nodes of the tree
are named by integer handles; 0 stands for the root. docs/design.md has the words and the invariants.
"""

from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

class DriverError(RuntimeError):
    """A call of the memory driver failed; what was begun has been rolled back."""

class OutOfMemory(DriverError):
    """The driver has no memory, whatever the budget allows: for the first page (`KVCache()`), or for what mapping pages
    takes beside them (`bind`, `grow`). Pages that cannot be created are withheld, and that is no error."""

class OutOfPages(RuntimeError):
    """Fewer pages are free or evictable than are needed; nothing was changed."""

class SlotsBusy(RuntimeError):
    """Every idle slot is still used by a forward that has not been completed."""

class InvariantError(AssertionError):
    """A rule of the core does not hold: a bug in it, or in how it is called."""

class Tokens(Protocol):
    """Token ids: a one-dimensional buffer of int64, as `array('q')`."""

    def __len__(self) -> int: ...

class Counters(TypedDict):
    """Events since the start.

    Matched tokens are those that binds found in the tree, and the sum of adopted (on pages that the slot mapped
    already), aliased (on pages that were mapped for it) and copied ones (copied or moved to pages that the slot mapped
    already, or copied as a tail). A token counts where its last byte lies. Every page is a driver call of its own, also
    in a batch; copies, which are only put on a stream, are none. `driver_ns` is the time spent in both, by whichever
    thread; `driver_wait_ns` what those who called the cache spent so, or waiting for its own thread.
    """

    binds: int
    tokens_matched: int
    tokens_adopted: int
    tokens_aliased: int
    tokens_copied: int
    pages_created: int
    pages_released: int
    creations_failed: int
    pages_aliased: int
    pages_adopted: int
    pages_reused: int
    pages_mapped: int
    pages_unmapped: int
    guards_mapped: int
    pages_mapped_ahead: int
    pages_moved: int
    pages_copied: int
    tails_extended: int
    tails_copied: int
    nodes_evicted: int
    tokens_evicted: int
    slots_shed: int
    driver_calls: int
    driver_ns: int
    driver_wait_ns: int

class RequestCosts(TypedDict):
    """What one request has cost: pages of its prefix that its slot mapped already (adopted) or that were mapped for it
    (aliased); contents moved for it; pages of its prefix copied to pages of its own; free pages taken where its slot
    mapped them; pages mapped and unmapped, guards too; and the time that its bind, and its part of growths, spent in
    the driver or waiting for it."""

    pages_adopted: int
    pages_aliased: int
    pages_moved: int
    pages_copied: int
    pages_reused: int
    pages_mapped: int
    pages_unmapped: int
    tail_copied: bool
    driver_wait_ns: int

class Usage(TypedDict):
    """What is in use now. `budget_pages` leaves the padding page out; the other page counts include it.

    `limit_pages` may exist at one time, the padding page aside again. `withheld_pages` are those of the budget that do
    not exist and cannot be created for now, as there is no memory.
    """

    budget_pages: int
    limit_pages: int
    created_pages: int
    free_pages: int
    held_pages: int
    evictable_pages: int
    withheld_pages: int
    slots: int
    live_slots: int
    nodes: int
    tree_tokens: int
    live_tokens: int
    mapping_runs: int

class PlanFacts(TypedDict):
    """Of a plan: its tasks, their tiles, the places of their partial results, the tokens that they read, and how many
    tokens that is less than if each request read them for itself."""

    tasks: int
    tiles: int
    places: int
    tokens_read: int
    tokens_saved: int

def host_mapping_limit() -> int:
    """Mappings that the host driver may make now: vm.max_map_count less what the process needs besides."""

def slot_bytes(page_bytes: int, token_bytes: int, tokens: int) -> int:
    """Bytes of addresses that a slot for `tokens` tokens takes: a multiple of the page and of the token size."""

class KVCache:
    """Pages, the virtual tensors that map them, and the radix tree that records them, behind one lock.

    Every method may be called from any thread; none holds the GIL while it works.
    """

    def __init__(
        self,
        *,
        driver: str,
        page_bytes: int,
        token_bytes: int,
        slots: int,
        slot_tokens: int,
        budget_pages: int,
        device: int = 0,
        cuda_library: str = "libcuda.so.1",
        mapping_limit: int = 0,
        exportable_pages: bool = False,
        inject_faults: bool = False,
        block_tokens: int = 0,
        move_pages: bool = False,
        map_ahead: bool = False,
        copy_from_pages: int = 256,
    ) -> None:
        """Reserve addresses for `slots` virtual tensors of `slot_tokens` tokens; physical pages come on demand.

        Args:
            driver: "host" (memfd and mmap), "cuda" (virtual memory management), or "none": pages without memory, to
                simulate a cache of any size.
            page_bytes: size of a physical page; a multiple of the driver's granularity (0 with "cuda": that itself;
                anything with "none").
            token_bytes: KV bytes of one token, all layers.
            slots: virtual tensors; slot 0 is padding, whose first page is always backed.
            slot_tokens: tokens that each must hold.
            budget_pages: pages that may exist at one time, beside the padding page.
            device: CUDA device ordinal.
            cuda_library: what to load the CUDA driver from.
            mapping_limit: runs of pages mapped at one time, and gaps after them, as the kernel counts mappings; 0 takes
                the driver's own limit.
            exportable_pages: with "cuda", pages whose handles can be exported as file descriptors, by which NCCL
                registers memory; where the device or the machine does not let them, they are as without.
            inject_faults: enable `inject_fault`.
            block_tokens: tokens of a block, see `new_blocks`; 0 for no blocks.
            move_pages: whether contents of pages are moved rather than pages mapped, where either would do. With "cuda"
                that costs a fraction of a mapping, on the host many times as much.
            map_ahead: whether a thread of the cache's maps and creates pages before they are needed: the next one of
                each live slot, and prefixes that several requests share in slots that map nothing.
            copy_from_pages: so many pages of its prefix, or more, a bind copies rather than maps, if contents may move:
                to pages that its slot maps already, as far as its caller can spare them.

        Raises:
            ValueError: a size that cannot be.
            DriverError: addresses are not to be had; OutOfMemory: not even memory for the padding page.
        """

    @property
    def driver(self) -> str:
        """ "host", "cuda" or "none"."""

    @property
    def page_bytes(self) -> int:
        """Size of a physical page."""

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token, all layers."""

    @property
    def slots(self) -> int:
        """Virtual tensors, the padding slot 0 included."""

    @property
    def slot_tokens(self) -> int:
        """Tokens from one slot to the next: token `p` of slot `s` has index `s * slot_tokens + p`."""

    @property
    def copy_from_pages(self) -> int:
        """As given; 0 where contents do not move, so that nothing is copied."""
    @property
    def block_tokens(self) -> int:
        """Tokens of a block, see `new_blocks`; 0 for no blocks."""

    @property
    def slot_bytes(self) -> int:
        """Addresses from one slot to the next."""

    @property
    def total_tokens(self) -> int:
        """Tokens that the budget holds when packed."""

    @property
    def base(self) -> int:
        """Address of slot 0."""

    def match(
        self, namespace: str | None, tokens: Tokens, limit: int | None = None, total_tokens: int = 0
    ) -> tuple[int, int]:
        """Find the longest recorded prefix of `tokens[:limit]`; its path counts as used now.

        Args:
            namespace: sequences of different namespaces share nothing.
            total_tokens: how far the sequence may grow; where holding the whole match and growing so far could take
                more pages than there are, the match is cut shorter. 0: do not look.

        Returns:
            (node, tokens matched). The handle is valid until the node is evicted: lock it.
        """

    def lock(self, node: int) -> None:
        """Protect a node and its ancestors from eviction, until as many unlocks."""

    def unlock(self, node: int) -> None:
        """Take one lock of a node back. InvariantError if it has none."""

    def bind(
        self, namespace: str | None, node: int, tokens: int, guard_tokens: int = 0, spare_pages: int = 0
    ) -> tuple[int, str, int, int]:
        """Take an idle slot and back its first `tokens` tokens: the locked node's path by sharing, the rest anew.

        Until the slot is released, it locks the node itself too.

        Args:
            guard_tokens: so many tokens behind the last can be read from now on, whatever they hold, for kernels that
                read in whole tiles: where nothing is mapped there, the padding page is.
            spare_pages: pages that nobody else is going to need while the request lives. Half of them, as far as they
                exist and are free, may be taken for copies of what other requests hold (`copy_from_pages`).

        Returns:
            (slot, tail, pages shared, pages mapped), `tail` being what became of the path's partly filled last page:
            "none" (there is none), "extended" (filled on in place) or "copied".

        Raises:
            ValueError: fewer tokens than the path has, or more than a slot holds; a node of another namespace; no
                slot is left.
            OutOfPages, SlotsBusy, DriverError: the slot stays idle. Pages may have been evicted.
        """

    def grow(self, slots: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64], guard_tokens: int = 0) -> None:
        """Back each live slot up to its token count; all or none. Guards and errors as for `bind`; SlotsBusy also
        where a forward may be reading what would be replaced."""

    def pages_to_grow(self, slots: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> int:
        """Pages that such a growth would take."""

    def record(self, slot: int, tokens: Tokens, limit: int | None = None) -> tuple[int, bool, int]:
        """Record the first `len(tokens[:limit])` tokens of a live slot in the tree; no data moves.

        What the slot was bound to or has recorded before is not compared again: `tokens` must begin with it.

        Returns:
            (node that ends there, or further on if more was recorded before; whether any of what the slot recorded so
            far stood in the tree already, with other pages; tokens added).
        """

    def play(self, namespace: str | None, tokens: Tokens, total: int, prompt: int, limit: int, chunk: int) -> int:
        """One request through all that a server asks of its cache, for replaying traces: match, lock, bind, record
        chunk by chunk, grow by the output, record, release, unlock.

        Args:
            total: its tokens are `tokens[:total]`: the prompt, and then the output.
            prompt: tokens of the prompt, at least 1.
            limit: tokens that may be found, at most those of the prompt.
            chunk: tokens after which a prompt is recorded.

        Returns:
            Tokens found.

        Raises:
            ValueError: numbers that cannot be.
            OutOfPages: it has more tokens than the cache holds.
        """

    def new_blocks(self, node: int) -> tuple[int, bytes | None]:
        """What the blocks of a leaf that `record` added tokens in follow on. The core keeps them for whoever is told in
        whole blocks what the tree holds; a block is `block_tokens` tokens, at a multiple of that many, of a path.

        Returns:
            (position where the first block that ends in the leaf begins, the id of the block before it or None).

        Raises:
            ValueError: the cache has no blocks.
            InvariantError: the blocks before were never set.
        """

    def set_blocks(self, node: int, ids: bytes) -> None:
        """Name the blocks that end in a new leaf, 32 bytes each. ValueError if there are not as many, or if they have
        names already."""

    def take_removed_blocks(self) -> bytes:
        """Ids of the blocks that were evicted or cleared since the last call, later ones of a path before earlier."""

    def blocks(self) -> bytes:
        """Ids of all blocks in the tree, in no order."""

    def busiest(self, count: int) -> list[tuple[str | None, int, int, int, list[int]]]:
        """Nodes by the tokens that they saved from being computed, most first; at most `count`.

        Returns:
            For each (namespace, start, end, hits, first tokens of the span [start, end), at most 16). A hit is a bind
            that found the whole span; it saved `end - start` tokens.
        """

    def release(self, slot: int) -> None:
        """End a slot's request. What it recorded stays, and so do its mappings."""

    def begin_forward(self, slots: npt.NDArray[np.int64], reads_guards: bool = False) -> int:
        """Number a forward that uses these slots; they are not bound anew before it is completed.

        Args:
            reads_guards: it reads behind their tokens. Until it is completed, `grow` raises SlotsBusy where it would
                have to replace what is mapped there.
        """

    def complete_forward(self, forward: int) -> None:
        """This forward and all before it have come to their end. ValueError if it has not begun."""

    def evict(self, pages: int) -> int:
        """Evict, least recently used first, until `pages` pages more can be taken or nothing is left.

        Returns tokens that were evicted.
        """

    def evict_tokens(self, tokens: int) -> int:
        """The same until `tokens` tokens more are available, in whole pages."""

    def trim(self, keep: int = 0, most_calls: int | None = None, settled: bool = True) -> int:
        """Give free pages back to the driver until `keep` are left.

        Args:
            most_calls: stop after about so many calls of the driver: one for the page and one for each of its mappings.
            settled: every copy and clear that the driver was told of is done. If not, pages of those that stand ahead
                of a forward not completed are passed over.

        Returns:
            How many pages were given back.
        """

    def set_limit(self, pages: int) -> None:
        """Let so many pages exist at one time, beside the padding page; the budget to begin with.

        What is held above that is evicted, as far as it is not pinned: no page can be taken before fewer are held.
        `shrink` gives the memory back. ValueError unless it is 1 up to the budget.
        """

    def shrink(self, most_calls: int, settled: bool = False) -> int:
        """Evict what is held above the limit, and give free pages above it back to the driver by about `most_calls`
        calls; forwards may be in flight.

        Args:
            settled: as of `trim`.

        Returns:
            How many pages were given back: call again while more exist than the limit allows.
        """

    def make_room(self, pages: int) -> bool:
        """Create pages and evict, if need be, so that `pages` pages are free and can be mapped: binds and growths that
        take no more cannot fail for lack of memory. False, and nothing evicted, if that cannot be."""

    def create_ahead(self, pages: int, retry: bool = False) -> None:
        """Create pages until `pages` are free, as far as the budget and the memory go.

        Where there is no memory for a page, all pages not created are withheld: they count as not available. It is
        tried again by the first call that needs pages 64 forwards later.

        Args:
            retry: try again now.

        Raises:
            DriverError: a page cannot be created, and not for lack of memory.
        """

    def mappable_pages(self) -> int:
        """Pages that can be mapped besides those of live and draining slots, after unmapping what nobody uses."""

    def prepare(self, node: int, least_pages: int, spare_pages: int = 0) -> int:
        """Have a long path mapped beside other work, before a request is bound to it.

        If `bind` would have to map `least_pages` of the node's path or more, a slot is left that maps nothing, and less
        than half of the memory is mapped, the cache's thread maps the path there.

        Args:
            node: where the path ends; it need not be locked.
            spare_pages: as of `bind`.

        Returns:
            Mappings that are still to come. 0: `bind` finds what there is.

        Raises:
            InvariantError: the node was evicted.
        """

    def finish_ahead(self) -> None:
        """Wait until all that is mapped and created ahead is so; nothing waits for that but tests and benchmarks."""

    def clear(self) -> None:
        """Forget every recorded sequence. InvariantError if a slot is live or a node locked."""

    def check(self) -> None:
        """Prove every invariant from scratch; InvariantError names the one that does not hold. Slow."""

    def usage(self) -> Usage:
        """What is in use now, in pages, tokens, slots and nodes."""

    def counters(self) -> Counters:
        """What was done since the start."""

    def physical_bytes(self) -> int:
        """Memory that the system says the pages occupy: the memfd's blocks, or the created CUDA pages."""

    def available_tokens(self) -> int:
        """Tokens for which pages can be taken without evicting."""

    def evictable_tokens(self) -> int:
        """Further tokens for which pages could be taken after evicting everything that is not locked."""

    def protected_tokens(self) -> int:
        """Tokens that the pinned pages have room for, less those that live requests hold and have not recorded."""

    def idle_slots(self) -> int:
        """Slots without a live request."""

    def deliverable_pages(self) -> int:
        """Pages that can be taken, if need be after evicting everything that is not locked."""

    def node_tokens(self, node: int) -> int:
        """Length of a node's path in tokens; 0 for the root."""

    def costs(self, slot: int) -> RequestCosts:
        """What the request in a live slot has cost so far."""

    def slot_pages(self, slot: int) -> list[int]:
        """Ids of a live slot's pages, by page index."""

    def path_pages(self, node: int) -> list[int]:
        """Ids of the pages of a node's path, by page index."""

    def set_stream(self, stream: int) -> None:
        """The CUDA stream (its handle) on which tails are copied."""

    def inject_fault(self, operation: str, successes: int = 0) -> None:
        """Let one driver call fail, after `successes` more of its kind: create, release, map, unmap or copy."""

    def limit_memory(self, pages: int) -> None:
        """Let creating a page fail for lack of memory while `pages` pages exist, the padding page included. Needs
        `inject_faults`."""

    def clear_faults(self) -> None:
        """Let nothing fail any more."""

    def tensor(self, offset: int, shape: list[int], strides: list[int], dtype: str) -> Any:
        """A view of the arena's addresses as a DLPack object, without a copy; it keeps the arena alive.

        Args:
            offset: bytes from `base`.
            shape, strides: in elements.
            dtype: uint8, float16, bfloat16, float32 or float64.
        """

class SharePlan:
    """What the requests of a decode batch read together: docs/design.md, "Tree-aware decode".

    A *task* reads tokens [start, end) once for up to `members_per_task` rows of the batch. A row's tasks, its *levels*,
    cover [0, own start) without a gap; the rest it reads for itself. Tasks are cut into tiles from their start on, and
    the tiles of all tasks, one after the other, dealt to workers in equal runs: worker w of `used` has
    [w * tiles // used, (w + 1) * tiles // used). Each worker that has tiles of a task writes a partial result for each
    of its members.

    The plan fills one buffer of `size` int32, so that one copy brings it to the device. By offset:

        0               [8]                   tasks, tiles, workers used, places, rows of the batch, most levels of a
                                              row, tokens of a tile, 0
        tasks_at        [max_tasks, 8]        slot, start, end, first, count, first_place, tile_end, spans
        order_at        [max_batch]           row by position: a task's members are order[first : first + count]
        positions_at    [max_batch]           position by row
        own_starts_at   [max_batch]           by row: tokens that its tasks cover
        row_tasks_at    [max_batch, max_levels]   by row: its tasks, from the first token on; -1 where none is
        runs_at         [max_workers, 4]      by worker: the first and the last task of which it has tiles, its first
                                              tile and the one behind its last; 0, -1, 0, 0 if it has none

    `tile_end` is the number of tiles up to and with the task's, `spans` the number of workers among which they are
    dealt. The partial result of the member at position p from the s-th of these workers has the place
    `first_place + s * count + p - first`. Where there is no task, the buffer keeps what it held. Rows behind the batch
    share nothing, and come last in the order.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        max_batch: int,
        max_workers: int,
        members_per_task: int,
        members_per_read: int = 0,
        max_levels: int = 8,
        least_saved: int = 128,
        max_places: int = 0,
    ) -> None:
        """Plans for batches of one cache.

        Args:
            max_batch: rows of the largest batch.
            max_workers: most workers that tiles are dealt to.
            members_per_task: most rows for which one task reads.
            members_per_read: rows for which the tasks of one stretch together are reckoned to read it once, as one
                finds in the L2 cache what another has read; at least `members_per_task`. 0: as many.
            max_levels: most tasks of a row.
            least_saved: tokens that each partial result must save: the plan is the one for which the tokens read, and
                this for each row and task, are least.
            max_places: places for partial results; where a plan would take more, the deepest levels are left out. 0: as
                many as any plan takes, `max_batch * max_levels + (max_workers - 1) * members_per_task`. One level must
                fit.

        Raises:
            ValueError: a limit that cannot be.
        """

    def update(self, slots: npt.NDArray[np.int64], buffer: npt.NDArray[np.int32], tile: int, workers: int) -> bool:
        """Plan for a batch, by what the tree knows now. The plan holds while the batch decodes on, whatever else
        happens to the tree, as long as its requests are live. It is the same on every rank that made the same calls.
        It is made after `grow`: the last token backed is taken for the one that the step computes, and left to the row.

        Args:
            slots: [batch], each live and named once, or 0, the padding slot.
            buffer: [size] int32, contiguous; written in full, if at all. One whose copy to the device may still be
                under way must not be given.
            tile: tokens of a tile.
            workers: that the tiles are dealt to; fewer are used where there are fewer tiles.

        Returns:
            Whether the buffer was written: not if the plan is the one of the last call, whatever buffer that was given.

        Raises:
            ValueError: a slot that is not live or named twice, more rows or workers than the plan is made for, or
                a buffer of another size.
        """

    def facts(self) -> PlanFacts:
        """Of the plan made last."""

    @property
    def size(self) -> int:
        """Integers in the buffer."""

    @property
    def tasks_at(self) -> int:
        """Offset of the tasks, [max_tasks, 8]."""

    @property
    def order_at(self) -> int:
        """Offset of the rows by position, [max_batch]."""

    @property
    def positions_at(self) -> int:
        """Offset of the positions by row, [max_batch]."""

    @property
    def own_starts_at(self) -> int:
        """Offset of the tokens that tasks cover, by row, [max_batch]."""

    @property
    def row_tasks_at(self) -> int:
        """Offset of the tasks by row, [max_batch, max_levels]."""

    @property
    def runs_at(self) -> int:
        """Offset of the workers' runs, [max_workers, 4]."""

    @property
    def max_tasks(self) -> int:
        """Most tasks of any plan."""

    @property
    def max_places(self) -> int:
        """Most places for partial results that any plan takes."""
