# SPDX-License-Identifier: Apache-2.0
"""Tree-aware decode: what the requests of a batch read together, planned on the host and brought to the device."""

import numpy as np
import torch

from vt_sglang._core import KVCache, SharePlan
from vt_sglang.triton_kernels import shared_hopper
from vt_sglang.triton_kernels.decode_plan import SHARED_READ, SHARED_ROWS, SharedTasks, shared_tile

MAX_LEVELS = 4
"""Most stretches that one request shares with others, each with other ones."""

LEAST_SAVED = 128
"""Tokens that each member of a group must save on average for it to be read together; a tile at least."""

_PARTIAL_BYTES = 2**26  # that the partial results of shared tasks may take, where one level fits
_BUFFERS = 4  # plans on their way to the device


class Sharing:
    """The plans of one attention shape, for every batch of a server.

    Args:
        core: the cache whose tree tells what is shared.
        heads, kv_heads, head_dim, v_head_dim: of the layers.
        itemsize: bytes of an element of K and V.
        multiprocessors: of the device.
        hopper: whether the layers can be read by shared_hopper.py.
    """

    def __init__(
        self,
        core: KVCache,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        v_head_dim: int,
        itemsize: int,
        multiprocessors: int,
        device: torch.device,
        hopper: bool,
    ) -> None:
        members = SHARED_ROWS // (heads // kv_heads)
        workers = max(1, multiprocessors // kv_heads)
        place_bytes = heads * (v_head_dim + 1) * 4
        one_level = core.slots + (workers - 1) * min(members, core.slots)
        self._plan = SharePlan(
            core,
            max_batch=core.slots,
            max_workers=workers,
            members_per_task=members,
            members_per_read=SHARED_READ * members,
            max_levels=MAX_LEVELS,
            least_saved=LEAST_SAVED,
            max_places=max(one_level, min(_PARTIAL_BYTES // place_bytes, one_level + (MAX_LEVELS - 1) * core.slots)),
        )
        self.tasks = SharedTasks(
            max_batch=core.slots,
            max_tasks=self._plan.max_tasks,
            max_levels=MAX_LEVELS,
            max_places=self._plan.max_places,
            members=members,
            workers=workers,
            tile=shared_hopper.TILE if hopper else shared_tile(head_dim, v_head_dim, itemsize, device),
            device=device,
        )
        pinned = device.type == "cuda"
        size = self._plan.size
        self._buffers = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(_BUFFERS)]
        self._copied = [torch.cuda.Event() if pinned else None for _ in range(_BUFFERS)]  # type: ignore[no-untyped-call]
        self._turn = 0

    @staticmethod
    def possible(*, heads: int, kv_heads: int, window: int) -> bool:
        """Whether a layer's requests can share at all: two of them have to fit into a tile of rows. What a window shows
        is short, and begins elsewhere for each request."""
        return window < 0 and 2 * heads <= SHARED_ROWS * kv_heads

    def update(self, slots: np.ndarray) -> int:
        """Plan for a batch that is about to be decoded, on the current stream. The device is not waited for, unless it
        is several plans behind.

        Args:
            slots: [batch] int64.

        Returns:
            Tokens that are not read for their being shared, of one layer.
        """
        buffer, copied = self._buffers[self._turn], self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        if self._plan.update(slots, buffer.numpy(), self.tasks.tile, self.tasks.workers):
            self.tasks.words.copy_(buffer, non_blocking=True)
            if copied is not None:
                copied.record()
            self._turn = (self._turn + 1) % _BUFFERS
        return self._plan.facts()["tokens_saved"]
