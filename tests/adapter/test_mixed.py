# SPDX-License-Identifier: Apache-2.0
"""Batches in which some requests prefill and others decode: when they are parted, and that no token falls between."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vt_sglang.adapter import mixed
from vt_sglang.adapter.mixed import MixedBatches


class Kernel:
    """Writes its sign into what it is given, and tells what it was prepared for."""

    shares = True

    def __init__(self, sign: float, saved: float = 0.0) -> None:
        self.sign, self.saved, self.prepared, self.planned = sign, saved, None, None

    def share(self, slots: np.ndarray) -> float:
        self.planned = slots.tolist()
        return self.saved

    def prepare(self, batch: Any) -> None:
        self.prepared = (batch.req_pool_indices.tolist(), batch.seq_lens.tolist(), list(batch.extend_seq_lens_cpu))

    def forward(self, query: torch.Tensor, output: torch.Tensor, _layer: Any, _sinks: Any) -> None:
        assert query.shape == output.shape
        torch.mul(query, self.sign, out=output)


@pytest.fixture
def pool() -> SimpleNamespace:
    slots = np.array([3, 5, 2, 7, 4])
    return SimpleNamespace(batch_slots=slots, batch_decoding=3, batch_saved_tokens=0.0, layer_token_bytes=4096)


def _run(pool: SimpleNamespace, prefill: Kernel, decode: Kernel, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Of a batch of 2 requests that prefill 4 and 1 tokens, and 3 that decode; what comes of tokens 1, 2, ..., 10, the
    last two of which are padding."""
    monkeypatch.setattr(mixed, "TritonDecode", Kernel)
    new = [4, 1, 1, 1, 1]
    batch = SimpleNamespace(
        req_pool_indices=torch.from_numpy(pool.batch_slots),
        seq_lens=torch.tensor([4, 100, 60, 70, 80]),
        extend_seq_lens=torch.tensor(new),
        extend_seq_lens_cpu=new,
        extend_prefix_lens_cpu=[0, 99, 59, 69, 79],
    )
    batches = MixedBatches(pool, prefill, decode)
    batches.prepare(batch)
    query = torch.arange(1.0, 11).view(10, 1, 1)
    output = torch.zeros_like(query)
    batches.forward(query, output, None, None)
    return output.flatten()


def test_those_that_share_enough_are_decoded(pool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = mixed.LEAST_SAVED_BYTES / pool.layer_token_bytes
    prefill, decode = Kernel(1), Kernel(-1, saved)
    output = _run(pool, prefill, decode, monkeypatch)
    assert decode.planned == [2, 7, 4]
    assert prefill.prepared == ([3, 5], [4, 100], [4, 1])
    assert decode.prepared == ([2, 7, 4], [60, 70, 80], [1, 1, 1])
    assert output.tolist() == [1, 2, 3, 4, 5, -6, -7, -8, 0, 0]
    assert pool.batch_saved_tokens == saved


@pytest.mark.parametrize(
    ("saved_bytes", "decoding", "shares"),
    [(mixed.LEAST_SAVED_BYTES - 4096, 3, True), (2**40, 0, True), (2**40, 1, True), (2**40, 3, False)],
    ids=["they share little", "none decodes", "one decodes", "sharing is off"],
)
def test_else_all_prefill(
    pool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, saved_bytes: int, decoding: int, shares: bool
) -> None:
    pool.batch_decoding = decoding
    prefill, decode = Kernel(1), Kernel(-1, saved_bytes / pool.layer_token_bytes)
    decode.shares = shares
    output = _run(pool, prefill, decode, monkeypatch)
    assert prefill.prepared == ([3, 5, 2, 7, 4], [4, 100, 60, 70, 80], [4, 1, 1, 1, 1])
    assert decode.prepared is None
    assert output.tolist() == list(range(1, 11))
    assert pool.batch_saved_tokens == 0


def test_the_next_batch_is_looked_at_anew(pool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was parted leaves nothing behind."""
    monkeypatch.setattr(mixed, "TritonDecode", Kernel)
    prefill, decode = Kernel(1), Kernel(-1, 2**40)
    batches = MixedBatches(pool, prefill, decode)
    fields = {"req_pool_indices": torch.arange(5), "seq_lens": torch.ones(5), "extend_seq_lens": torch.ones(5)}
    batch = SimpleNamespace(**fields, extend_seq_lens_cpu=[1] * 5, extend_prefix_lens_cpu=[0] * 5)
    query, output = torch.ones(5, 1, 1), torch.zeros(5, 1, 1)
    for decoding, expected in ((3, [1, 1, -1, -1, -1]), (0, [1] * 5), (2, [1, 1, 1, -1, -1])):
        pool.batch_decoding = decoding
        batches.prepare(batch)
        batches.forward(query, output, None, None)
        assert output.flatten().tolist() == expected
