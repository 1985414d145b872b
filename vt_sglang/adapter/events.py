# SPDX-License-Identifier: Apache-2.0
"""SGLang's KV events of the core's tree: which whole blocks of tokens it holds."""

from typing import Any

from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, StorageMedium

from vt_sglang._core import KVCache
from vt_sglang.events.hashing import as_token_array, block_digests, event_hash, namespace_digest, split_digests


class BlockEvents:
    """What happened to the tree's blocks since it was last asked, in order.

    A block is `block_tokens` tokens, at a multiple of that many, of a path. It is stored when its last token is
    recorded and removed when that token's node is evicted. The core keeps the digests, so that nodes can be split and
    evicted without asking here; this names what `record` added, and turns digests into events.

    The first event is AllBlocksCleared, as SGLang's own cache begins: who still knows the contents of a server that
    ran before on the same address forgets them.
    """

    def __init__(self, core: KVCache) -> None:
        if core.block_tokens == 0:
            raise ValueError("events need a core that was made with block_tokens")
        self._core = core
        self._block_tokens = core.block_tokens
        self._queue: list[Any] = [AllBlocksCleared()]

    def recorded(self, namespace: str | None, node: int, tokens: Any) -> None:
        """Name the blocks that became complete.

        Args:
            node: the leaf that `record` has just made.
            tokens: int64 ids of its path, or more.
        """
        self._take_removed()  # a block that was evicted earlier may be stored again now
        start, before = self._core.new_blocks(node)
        stop = self._core.node_tokens(node) // self._block_tokens * self._block_tokens
        if stop <= start:
            return
        parent = None if before is None else event_hash(before)
        ids = as_token_array(tokens, start, stop)
        digests = block_digests(ids, self._block_tokens, namespace_digest(namespace) if before is None else before)
        self._core.set_blocks(node, b"".join(digests))
        for digest, block in zip(digests, ids.reshape(-1, self._block_tokens).tolist(), strict=True):
            name = event_hash(digest)
            self._queue.append(
                BlockStored(
                    block_hashes=[name],
                    parent_block_hash=parent,
                    token_ids=block,
                    block_size=self._block_tokens,
                    lora_id=None,  # as SGLang's own tree; an adapter's blocks have names of their own
                    medium=StorageMedium.GPU,
                )
            )
            parent = name

    def cleared(self) -> None:
        """The tree was emptied."""
        self._core.take_removed_blocks()
        self._queue.append(AllBlocksCleared())

    def take(self) -> list[Any]:
        """All events since the last call."""
        self._take_removed()
        events, self._queue = self._queue, []
        return events

    def _take_removed(self) -> None:
        if removed := self._core.take_removed_blocks():
            names = [event_hash(digest) for digest in split_digests(removed)]
            self._queue.append(BlockRemoved(block_hashes=names, medium=StorageMedium.GPU))
