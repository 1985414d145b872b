# SPDX-License-Identifier: Apache-2.0
"""Where a batch gets its memory: slots are bound and grown, and locations are arithmetic."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import ReqKvInfo

from vt_sglang._core import DriverError, KVCache, OutOfMemory, OutOfPages
from vt_sglang.adapter.forwards import order_copies, wait_for_forwards
from vt_sglang.adapter.patience import WAITS_IN_DECODE_S, patiently
from vt_sglang.adapter.tree_cache import VTensorCache

logger = logging.getLogger(__name__)


class PrefillMemoryError(RuntimeError):
    """There is no memory for a batch that was admitted. Its requests are locked, and hold what they held before
    it: nothing, but for one that goes on with its next chunk."""

    def __init__(self, reqs: list[Any], message: str) -> None:
        super().__init__(message)
        self.reqs = reqs


def alloc_for_extend(original: Callable[..., Any], batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """AROUND `alloc_for_extend`: bind the new requests' prefixes to slots, grow those of chunked ones; and those that
    decode in the same batch, while SGLang can still turn back.

    Returns:
        Locations of the new tokens (int64, batch's device), and the slots (int64) there and on the CPU.

    Raises:
        PrefillMemoryError: there is no memory for what the requests need, or for mapping it.
        RuntimeError: anything else that the driver fails in. In both cases nobody keeps what this batch was given.
    """
    cache = batch.tree_cache
    if not isinstance(cache, VTensorCache):
        result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = original(batch)
        return result
    order_copies(cache, batch)
    ends = batch.seq_lens_cpu.numpy()
    guard = cache.kv_pool.prefill_guard_tokens
    spare = 0 if cache.count_spare_pages is None else cache.count_spare_pages()
    cache.count_spare_pages = None
    bound: list[Any] = []
    try:
        for req, end in zip(batch.reqs, ends.tolist(), strict=True):
            if req.req_pool_idx is None:
                req.req_pool_idx = _bind(cache, req, end, guard, spare)
                if spare > 0:
                    spare -= cache.core.costs(req.req_pool_idx)["pages_copied"]
                bound.append(req)
        slots = np.array([req.req_pool_idx for req in batch.reqs], dtype=np.int64)
        _grow(cache, slots, ends, _to_be_mixed(cache, batch))
    except (DriverError, OutOfPages, ValueError) as error:
        wait_for_forwards(cache)  # and for the copies of tails into slots that are now given back
        for req in bound:
            cache.core.release(req.req_pool_idx)
            req.req_pool_idx = None
        failure = _out_of_memory(cache, "prefill", batch.extend_num_tokens, error)
        if isinstance(error, OutOfMemory | OutOfPages):
            raise PrefillMemoryError(batch.reqs, str(failure)) from error
        raise failure from error
    for req in bound:
        cache.req_to_token_pool.bound(req.req_pool_idx)
        cache.tally.bound(req)
    for req, end in zip(batch.reqs, ends.tolist(), strict=True):
        if req.kv is None:
            req.kv = ReqKvInfo(kv_allocated_len=end, swa_evicted_seqlen=0)
        else:
            req.kv.kv_allocated_len = end
    locations = _locations(cache, slots.tolist(), batch.prefix_lens, ends.tolist())
    slots_cpu = _staged(cache, len(slots))
    slots_cpu.numpy()[:] = slots
    device = batch.device
    return locations.to(device, non_blocking=True), slots_cpu.to(device, non_blocking=True), slots_cpu


def _locations(cache: VTensorCache, slots: list[int], starts: list[int], ends: list[int]) -> torch.Tensor:
    """Of tokens [start, end) of each slot, one slot after the other: [tokens] int64, on the host."""
    slot_tokens = cache.core.slot_tokens
    locations = _staged(cache, sum(ends) - sum(starts))
    written, at = locations.numpy(), 0
    for slot, start, end in zip(slots, starts, ends, strict=True):
        written[at : at + end - start] = np.arange(slot * slot_tokens + start, slot * slot_tokens + end)
        at += end - start
    return locations


def _staged(cache: VTensorCache, count: int) -> torch.Tensor:
    """[count] int64 on the host, not written, from where a GPU copies without the host's waiting for it."""
    return torch.empty(count, dtype=torch.int64, pin_memory=cache.device.type != "cpu")


def _to_be_mixed(cache: VTensorCache, batch: Any) -> list[Any]:
    """The requests that SGLang is going to put behind a prefill batch, to decode (`--enable-mixed-chunk`)."""
    running = cache.mixing
    if running is None or batch.return_logprob or running.return_logprob:
        return []
    if any(req.input_embeds is not None for req in batch.reqs):
        return []
    return [req for req in running.reqs if not req.finished()]


def _grow(cache: VTensorCache, slots: np.ndarray, ends: np.ndarray, decoding: list[Any]) -> None:
    """Back a prefill batch up to its ends, and the next token of those that decode in it; all of them or none."""
    guard = cache.kv_pool.prefill_guard_tokens
    if decoding:
        their_slots, their_ends = _next_tokens(decoding)
        slots, ends = np.concatenate([slots, their_slots]), np.concatenate([ends, their_ends])
        guard = max(guard, cache.kv_pool.decode_guard_tokens)
    patiently(cache, lambda: cache.core.grow(slots, ends, guard))


def _bind(cache: VTensorCache, req: Any, end: int, guard: int, spare: int) -> int:
    node = req.last_node
    if (length := cache.core.node_tokens(node)) != len(req.prefix_indices):
        raise RuntimeError(f"request {req.rid} has a prefix of {len(req.prefix_indices)} tokens, its node of {length}")
    return patiently(cache, lambda: cache.core.bind(req.extra_key, node, end, guard, spare)[0])


def alloc_for_decode(original: Callable[..., Any], batch: Any, token_per_req: int) -> torch.Tensor:
    """AROUND `alloc_for_decode`: back one step more of each request. Returns the new tokens' locations (int64).

    Raises:
        RuntimeError: memory cannot be had; nothing was changed.
    """
    cache = batch.tree_cache
    if not isinstance(cache, VTensorCache):
        result: torch.Tensor = original(batch, token_per_req)
        return result
    try:
        slots, ends = batch.req_pool_indices_cpu.numpy(), batch.seq_lens_cpu.numpy() + token_per_req
        patiently(cache, lambda: cache.core.grow(slots, ends, cache.kv_pool.decode_guard_tokens))
    except (DriverError, OutOfPages) as error:
        raise _out_of_memory(cache, "decode", len(batch.reqs) * token_per_req, error) from error
    for req in batch.reqs:
        req.kv.kv_allocated_len += token_per_req
    return batch.req_pool_indices * cache.core.slot_tokens + batch.seq_lens  # type: ignore[no-any-return]


def alloc_for_spec_decode(original: Callable[..., None], tree_cache: Any, *args: Any, **kwargs: Any) -> None:
    """AROUND `alloc_for_spec_decode`."""
    if isinstance(tree_cache, VTensorCache):
        raise RuntimeError("speculative decoding is not supported on virtual tensors")
    original(tree_cache, *args, **kwargs)


def check_decode_mem(original: Callable[..., Any], batch: Any, selected_indices: list[int] | None = None) -> bool:
    """AROUND `ScheduleBatch.check_decode_mem`: let each request grow by a token, in whole pages, and evict for that.

    They grow here and not only when the batch is prepared: mapping takes memory that no ledger knows of, and where the
    driver has none, SGLang can still retract requests.

    Returns:
        Whether they could. If not, requests are retracted, and the rest asked for again.
    """
    cache = batch.tree_cache
    if not isinstance(cache, VTensorCache):
        return bool(original(batch, selected_indices))
    order_copies(cache, batch)
    reqs = batch.reqs if selected_indices is None else [batch.reqs[i] for i in selected_indices]
    slots, ends = _next_tokens(reqs)
    pages = cache.core.pages_to_grow(slots, ends)
    if not cache.core.make_room(pages):
        if cache.core.mappable_pages() >= pages:
            return False
        wait_for_forwards(cache)  # what retracted requests map can be unmapped only then
        if not cache.core.make_room(pages):
            return False
    try:
        patiently(cache, lambda: cache.core.grow(slots, ends, cache.kv_pool.decode_guard_tokens), WAITS_IN_DECODE_S)
    except (OutOfMemory, OutOfPages) as error:
        logger.warning("%s: of %d requests that are decoded, some have to wait", error, len(reqs))
        return False
    return True


def pages_for_next_token(core: KVCache, reqs: list[Any]) -> int:
    """Pages that the requests take when each grows by a token. Requests without a slot are passed over."""
    return core.pages_to_grow(*_next_tokens(reqs))


def _next_tokens(reqs: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Slots, and tokens that they have with one more; both [requests] int64."""
    growing = [req for req in reqs if req.req_pool_idx is not None]
    return (
        np.array([req.req_pool_idx for req in growing], dtype=np.int64),
        np.array([req.kv.kv_allocated_len + 1 for req in growing], dtype=np.int64),
    )


def _out_of_memory(cache: VTensorCache, phase: str, tokens: int, error: Exception) -> RuntimeError:
    return RuntimeError(
        f"no memory for {phase} of {tokens} tokens: {error}. {cache.available_and_evictable_str()}"
        "Where memory is short, lower --max-running-requests or --mem-fraction-static, or end what else uses the device"
    )
