# SPDX-License-Identifier: Apache-2.0
"""All slots' K or V as one matrix, a token a row, and queries, a head a row, as the tensor memory accelerator (TMA)
reads them."""

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

MOST_ROWS = 2**31
"""There are to be fewer: a descriptor's coordinates are of 32 bits."""


def in_rows(cache: torch.Tensor) -> bool:
    """Whether TMA can read it so: heads and slots side by side, steps of whole 16 bytes, and rows that 32 bits count.

    Args:
        cache: [slots, slot_tokens, kv_heads, head_dim].
    """
    slots, tokens, _, dim = cache.shape
    of_slot, of_token, of_head, of_element = cache.stride()
    whole = of_element == 1 and of_head == dim and of_slot == tokens * of_token and slots * tokens < MOST_ROWS
    return whole and (of_token * cache.itemsize | cache.data_ptr()) % 16 == 0


def triton_rows(cache: torch.Tensor, tile: int) -> TensorDescriptor:
    """For Triton kernels: blocks of `tile` tokens of a head.

    Args:
        cache: [slots, slot_tokens, kv_heads, head_dim], such as `in_rows` takes.
    """
    return TensorDescriptor(cache, *_matrix(cache), [tile, cache.shape[3]])


def gluon_rows(cache: torch.Tensor, tile: int) -> GluonDescriptor:
    """The same for Gluon kernels, of 2 bytes an element, laid out in shared memory as tensor cores read it."""
    return GluonDescriptor(cache, *_matrix(cache), [tile, cache.shape[3]], gl.NVMMASharedLayout(128, 16))


def heads_in_rows(q: torch.Tensor) -> bool:
    """Whether TMA can read a head a row: heads side by side, and requests whole heads apart.

    Args:
        q: [batch, heads, head_dim].
    """
    dim, (of_request, of_head, of_element) = q.shape[2], q.stride()
    whole = of_element == 1 and of_head == dim and of_request % dim == 0
    return whole and (dim * q.itemsize | q.data_ptr()) % 16 == 0


def gluon_heads(q: torch.Tensor, heads: int) -> GluonDescriptor:
    """For Gluon kernels, of 2 bytes an element: blocks of so many heads, of rows of which some are no query's.

    Args:
        q: [batch, heads, head_dim], such as `heads_in_rows` takes.
    """
    batch, of_one, dim = q.shape
    rows = (batch - 1) * q.stride(0) // dim + of_one
    return GluonDescriptor(q, [rows, dim], [dim, 1], [heads, dim], gl.NVMMASharedLayout(128, 16))


def _matrix(cache: torch.Tensor) -> tuple[list[int], list[int]]:
    """Shape and strides, in elements."""
    slots, tokens, heads, dim = cache.shape
    return [slots * tokens, heads * dim], [cache.stride(1), 1]
