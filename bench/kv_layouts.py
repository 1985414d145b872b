# SPDX-License-Identifier: Apache-2.0
"""The same KV as the plug-in lays it out, and as stock SGLang does."""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vt_sglang._core import KVCache
from vt_sglang.adapter.fa3 import GUARD_TOKENS
from vt_sglang.layout import DEVICE_PAGE_BYTES, Geometry, host_page_bytes

HEAD_DIM = 128
LAYERS = 32
# Of a GPU's memory, what an arena takes, and what a copy of those layers takes through which a measurement goes, one
# after the other as a model's step does; the L2 cache holds 50 MB.
ARENA_SHARE, ROTATED_SHARE = 0.42, 0.15
MOST_ROTATED, LEAST_ROTATED = 8, 2


def arena_layers(layer_bytes: int, memory: int) -> tuple[int, int]:
    """How many layers of a model fit into an arena, and how many of these a measurement goes through.

    Args:
        layer_bytes: of the arena, for one layer.
        memory: bytes that the GPU has.
    """
    rotated = max(LEAST_ROTATED, min(MOST_ROTATED, int(memory * ROTATED_SHARE) // layer_bytes))
    return max(rotated, min(LAYERS, int(memory * ARENA_SHARE) // layer_bytes)), rotated


class VirtualTensors:
    """The plug-in's own memory and layout: a slot a request, pages as scattered as those of requests that grew beside
    each other, and as many of a model's 32 layers as fit, `layers`, with the strides of a model of so many.

    Args:
        lengths: tokens of each request.
        kv_heads: of the model.
        device: "cuda", or "cpu": the same in the host's memory.

    Raises:
        OutOfPages, DriverError: there is not so much memory.
    """

    def __init__(self, lengths: Sequence[int], kv_heads: int, device: str = "cuda") -> None:
        layer_bytes = sum(lengths) * kv_heads * HEAD_DIM * 2 * 2
        memory = torch.cuda.get_device_properties(0).total_memory
        self.layers, self.rotated = arena_layers(layer_bytes, memory)
        self._step = self.layers // self.rotated
        token = (self.layers, 2, kv_heads, HEAD_DIM)
        token_bytes = math.prod(token) * 2
        page_bytes = DEVICE_PAGE_BYTES if device == "cuda" else host_page_bytes(token_bytes)
        self._cache = KVCache(
            driver="cuda" if device == "cuda" else "host",
            page_bytes=page_bytes,
            token_bytes=token_bytes,
            slots=len(lengths) + 1,
            slot_tokens=max(lengths) + GUARD_TOKENS,
            budget_pages=sum(Geometry(page_bytes, token_bytes).pages_for(length) for length in lengths),
        )
        slots = self._scatter(lengths, max(1, page_bytes // token_bytes))
        arena = torch.utils.dlpack.from_dlpack(
            self._cache.tensor(
                0,
                [self._cache.slots * self._cache.slot_tokens, *token],
                [math.prod(token[place:]) for place in range(len(token) + 1)],
                "bfloat16",
            )
        )
        self.data = arena.unflatten(0, (self._cache.slots, self._cache.slot_tokens))
        """[slots, tokens, layers, 2, kv_heads, head_dim]; of a slot, its request's tokens are memory."""
        for slot, length in zip(slots, lengths, strict=True):
            self.data[slot, :length].normal_()
        self.slots = torch.tensor(slots, device=device)

    def _scatter(self, lengths: Sequence[int], page_tokens: int) -> list[int]:
        """Bind a slot to each request, whose pages come by turns that are drawn."""
        drawn = random.Random(1)
        slots = [self._cache.bind(None, 0, 1)[0] for _ in lengths]
        left = [[*range(page_tokens, length, page_tokens), length] for length in lengths]
        turns = [row for row, its in enumerate(left) for _ in its]
        drawn.shuffle(turns)
        for steps in left:
            steps.reverse()
        for row in turns:
            self._cache.grow(np.array([slots[row]]), np.array([left[row].pop()]))
        self._cache.grow(np.array(slots), np.array(lengths), GUARD_TOKENS)
        return slots

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V: [slots, tokens, kv_heads, head_dim]."""
        return self.data[:, :, index * self._step, 0], self.data[:, :, index * self._step, 1]


class Paged:
    """The same KV in pages of `page` tokens, scattered, a buffer a layer."""

    def __init__(self, lengths: Sequence[int], tensors: VirtualTensors, page: int) -> None:
        needed = [-(-length // page) for length in lengths]
        order = torch.randperm(sum(needed), device="cuda", dtype=torch.int32)
        self.table = torch.zeros(len(needed), max(needed), dtype=torch.int32, device="cuda")
        for row, pages in zip(self.table, order.split(needed), strict=True):
            row[: len(pages)] = pages
        self.buffers = []
        for index in range(tensors.rotated):
            pair = []
            for source in tensors.layer(index):
                heads = source.shape[2:]
                buffer = torch.zeros(len(order) * page, *heads, dtype=torch.bfloat16, device="cuda")
                for row, (slot, length) in enumerate(zip(tensors.slots, lengths, strict=True)):
                    position = torch.arange(length, device="cuda")
                    at = self.table[row][position // page].long() * page + position % page
                    buffer[at] = source[slot, :length]
                pair.append(buffer.view(-1, page, *heads))
            self.buffers.append(pair)


def rotated(run: Callable[[int], object], tensors: VirtualTensors) -> list[Callable[[], object]]:
    """One call a layer."""
    return [lambda index=index: run(index) for index in range(tensors.rotated)]


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((output.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
