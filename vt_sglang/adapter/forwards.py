# SPDX-License-Identifier: Apache-2.0
"""Forwards are numbered, so that no slot is bound anew while one that uses it is in flight."""

import time
from collections.abc import Callable
from typing import Any

import torch

from vt_sglang.adapter.kv_pool import NO_SLOTS
from vt_sglang.adapter.tree_cache import VTensorCache

_FORWARD = "_vtensor_forward"
"""Attribute of a batch result: the number of its forward."""


def run_batch(original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND `Scheduler.run_batch`: number the forward before it is launched."""
    cache = scheduler.tree_cache
    if not isinstance(cache, VTensorCache) or batch.req_pool_indices_cpu is None:
        return original(scheduler, batch, *args, **kwargs)
    if cache.check_always:
        cache.core.check()
    cache.elastic.work()
    guard = cache.kv_pool.prefill_guard_tokens if batch.forward_mode.is_extend() else cache.kv_pool.decode_guard_tokens
    slots = cache.kv_pool.batch_slots = batch.req_pool_indices_cpu.numpy()
    decoding = batch.mix_running_indices if batch.forward_mode.is_mixed() else None
    cache.kv_pool.batch_decoding = 0 if decoding is None else len(decoding)
    cache.kv_pool.batch_saved_tokens = 0.0
    forward = cache.last_forward = cache.core.begin_forward(slots, guard > 0)
    cache.tally.forward(batch)
    result = original(scheduler, batch, *args, **kwargs)
    cache.kv_pool.batch_slots = NO_SLOTS
    cache.kv_pool.batch_decoding = 0
    cache.tally.saved(cache.kv_pool.batch_saved_tokens)
    if cache.metrics is not None:
        cache.metrics.stepped()
    if cache.device.type == "cpu":
        cache.core.complete_forward(forward)  # nothing is asynchronous on a CPU
    else:
        setattr(result, _FORWARD, forward)
    return result


def order_copies(cache: VTensorCache, batch: Any) -> None:
    """Have tails copied and pages' contents moved where the batch's forward will run, behind the forwards that wrote
    them.

    With the overlap schedule forwards have a stream of their own; without it they run on the scheduler's."""
    if cache.device.type == "cpu":
        return
    stream = cache.forward_stream if batch.enable_overlap else torch.get_device_module(cache.device).current_stream()
    cache.core.set_stream(stream.cuda_stream)


def finish_forwards(cache: VTensorCache) -> None:
    """Let every forward that was launched, and all that the device was told besides, come to its end."""
    torch.get_device_module(cache.device).synchronize()
    cache.core.complete_forward(cache.last_forward)


def wait_for_forwards(cache: VTensorCache) -> None:
    """The same while requests wait for memory, which is counted."""
    begun = time.perf_counter()
    finish_forwards(cache)
    cache.tally.waited(time.perf_counter() - begun)


def process_batch_result(original: Callable[..., None], scheduler: Any, batch: Any, result: Any) -> None:
    """AROUND `Scheduler.process_batch_result`, which waits for the forward first of all.

    Forwards run in the order they are launched, so a result that is here proves that forward and all before it done.
    The slots of requests that finish in it were used by the next forward at the latest, which has its own number.
    """
    forward = getattr(result, _FORWARD, None)
    if forward is not None:
        copied = getattr(result, "copy_done", None)
        if copied is not None:
            copied.synchronize()
            scheduler.tree_cache.core.complete_forward(forward)
            forward = None
    original(scheduler, batch, result)
    if forward is not None:
        scheduler.tree_cache.core.complete_forward(forward)
