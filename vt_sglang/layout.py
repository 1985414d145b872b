# SPDX-License-Identifier: Apache-2.0
"""How KV lies inside a virtual tensor, and how tokens fall on pages."""

import os
from dataclasses import dataclass

DEVICE_PAGE_BYTES = 2 * 2**20
"""CUDA's allocation granularity, on every GPU seen."""

# A page is the grain of sharing and of waste. Llama-3-8B in bf16 has 16 tokens on a 2 MiB page, the 1B model 64.
_MOST_TOKENS_A_PAGE = 64


@dataclass(frozen=True)
class KVLayout:
    """Token-major layout `[token][layer][K, V][kv head][head dim]`: one page holds a few tokens of all layers.

    A layer's K is the strided view `[tokens, kv_heads, head_dim]` that begins `key_offset(layer)` bytes into a slot
    and has a stride of `token_bytes` from one token to the next; V likewise.
    """

    layers: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    itemsize: int
    """Bytes of one element."""

    @property
    def layer_bytes(self) -> int:
        """Bytes of one token in one layer."""
        return self.kv_heads * (self.head_dim + self.v_head_dim) * self.itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers."""
        return self.layers * self.layer_bytes

    def key_offset(self, layer: int) -> int:
        """Bytes from a token's start to its K in a layer."""
        return layer * self.layer_bytes

    def value_offset(self, layer: int) -> int:
        """Bytes from a token's start to its V in a layer."""
        return layer * self.layer_bytes + self.kv_heads * self.head_dim * self.itemsize


@dataclass(frozen=True)
class Geometry:
    """How token positions fall on pages: a sequence's byte b lies in its page `b // page_bytes`."""

    page_bytes: int
    token_bytes: int

    def pages_for(self, tokens: int) -> int:
        """Pages that a sequence of so many tokens touches."""
        return -(-tokens * self.token_bytes // self.page_bytes)

    def page_of(self, token: int) -> int:
        """Index of the page on which a token begins."""
        return token * self.token_bytes // self.page_bytes

    def tokens_in(self, pages: int) -> int:
        """Whole tokens that so many pages hold."""
        return pages * self.page_bytes // self.token_bytes


def host_page_bytes(token_bytes: int) -> int:
    """Page size for the host driver: 2 MiB, as on a GPU, but a smaller power of two for a model so small that a page
    would hold more than 64 of its tokens; never less than the system's page."""
    system = os.sysconf("SC_PAGESIZE")
    page = DEVICE_PAGE_BYTES
    while page > system and page > _MOST_TOKENS_A_PAGE * token_bytes:
        page //= 2
    return page
