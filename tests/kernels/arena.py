# SPDX-License-Identifier: Apache-2.0
"""A batch over token-major virtual tensors, with garbage wherever no request may look."""

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float16, torch.bfloat16] if CUDA else [torch.float16, torch.float32]
SERVED_DTYPES = [torch.float16, torch.bfloat16] if CUDA else [torch.float16]
"""What models on a GPU compute in; the interpreter takes its time for each."""
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6}


class Arena:
    """K and V of requests of these lengths, `k` and `v`: [slots, slot_tokens, kv_heads, head_dim], and their `slots`.

    The arena is [slots][tokens][two layers][K, V][kv heads][head dim]; the kernels get its second layer. Everything
    past a request's length is NaN.
    """

    def __init__(
        self,
        lengths: list[int],
        *,
        kv_heads: int,
        head_dim: int,
        v_head_dim: int,
        dtype: torch.dtype,
        slot_tokens: int = 700,
        generator: torch.Generator,
    ) -> None:
        batch, width = len(lengths), kv_heads * (head_dim + v_head_dim)
        arena = torch.full((batch + 2, slot_tokens, 2, width), float("nan"), dtype=dtype)
        self.slots = torch.randperm(batch + 2, generator=generator)[:batch]
        for slot, length in zip(self.slots, lengths, strict=True):
            arena[slot, :length, 1] = torch.randn(length, width, generator=generator).to(dtype)
        layer = arena.to(DEVICE)[:, :, 1]
        split = kv_heads * head_dim
        self.k = layer[..., :split].unflatten(-1, (kv_heads, head_dim))
        self.v = layer[..., split:].unflatten(-1, (kv_heads, v_head_dim))

    def request(self, row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of one request, as the reference takes them."""
        slot = self.slots[row]
        return self.k[slot, :length].cpu().float(), self.v[slot, :length].cpu().float()


def assert_close(output: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, what: str) -> None:
    """Compare with a float64 reference, by what the dtype's rounding allows."""
    bound = TOLERANCE[dtype] * max(1.0, expected.abs().max().item())
    error = (output.cpu().double() - expected).abs().max().item()
    assert error <= bound, f"{what}: {error} > {bound}"  # NaN fails too
