# SPDX-License-Identifier: Apache-2.0
"""The same KV as the plug-in lays it out, and as stock SGLang does."""

from collections.abc import Callable, Sequence

import torch

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
    """An arena, token-major, as a tensor: plain memory in a server's layout, with as many of a model's 32 layers as
    fit, `layers`, and the strides of a model of so many.

    Args:
        lengths: tokens of each request.
        kv_heads: of the model.
    """

    def __init__(self, lengths: Sequence[int], kv_heads: int) -> None:
        slots, tokens = len(lengths), max(lengths)
        layer_bytes = slots * tokens * kv_heads * HEAD_DIM * 2 * 2
        memory = torch.cuda.get_device_properties(0).total_memory
        self.layers, self.rotated = arena_layers(layer_bytes, memory)
        self._step = self.layers // self.rotated
        self.data = torch.empty(slots, tokens, self.layers, 2, kv_heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        for slot in self.data:
            slot.normal_()
        self.slots = torch.randperm(slots, device="cuda")

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
