# SPDX-License-Identifier: Apache-2.0
"""The shapes that prefill attention is measured in, what they take at least, and what a server would choose."""

import random
from dataclasses import dataclass

HEAD_DIM = 128


@dataclass(frozen=True)
class PrefillShape:
    """A batch of requests of (prefix, new) tokens."""

    name: str
    requests: tuple[tuple[int, int], ...]
    heads: int = 32
    kv_heads: int = 8

    @property
    def lengths(self) -> list[int]:
        """Tokens of each request."""
        return [prefix + new for prefix, new in self.requests]

    @property
    def flops(self) -> int:
        """Multiplications and additions of the two products, for what is visible."""
        pairs = sum(new * prefix + new * (new + 1) // 2 for prefix, new in self.requests)
        return 4 * self.heads * HEAD_DIM * pairs

    @property
    def bytes(self) -> int:
        """Bytes of K and V in bfloat16 that one layer's attention has to read."""
        return sum(self.lengths) * self.kv_heads * HEAD_DIM * 2 * 2

    def floor_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The longer of computing at the rate of a plain matrix product, and of reading K and V once at that of a plain
        read."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)

    def chosen(self, processors: int) -> str:
        """What `--vtensor-prefill-kernel auto` takes on a Hopper GPU: the name of a side."""
        from vt_sglang.adapter.prefill_choice import hopper_is_faster

        new, prefixes = [new for _, new in self.requests], [prefix for prefix, _ in self.requests]
        heads = {"heads": self.heads, "kv_heads": self.kv_heads}
        return "hopper" if hopper_is_faster(new, prefixes, **heads, processors=processors) else "fa3_contiguous"


def prefill_shapes(short: bool = False) -> list[PrefillShape]:
    """All of them; the ragged batches are the same in every run. `short`: others, in which rows see few tokens."""
    draw = random.Random(1)
    ragged = tuple((draw.randint(512, 1536), draw.randint(1, 128)) for _ in range(64))
    plain = [(1, 0, 8192), (1, 32_768, 512), (1, 131_072, 2048), (4, 8192, 1024), (16, 4096, 128)]
    if short:
        plain = [(8, 0, 160), (16, 0, 512), (4, 0, 2048), (16, 640, 128), (64, 640, 128), (16, 1280, 128)]
    shapes = []
    for heads, kv_heads in ((32, 8), (8, 1)):
        suffix = "" if kv_heads == 8 else ", 8 heads on 1"
        shapes += [
            PrefillShape(f"{batch}: {prefix:,} + {new:,}{suffix}", ((prefix, new),) * batch, heads, kv_heads)
            for batch, prefix, new in plain
        ]
        if short:
            continue
        shapes.append(PrefillShape(f"64: about 1,024 + 64{suffix}", ragged, heads, kv_heads))
    return shapes
