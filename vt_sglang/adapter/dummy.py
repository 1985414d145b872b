# SPDX-License-Identifier: Apache-2.0
"""Batches that SGLang makes up to capture CUDA graphs of prefill: nothing is at their slots to be read."""

from typing import Any

_MARK = "_vtensor_dummy"


def mark(result: tuple[Any, Any], _runner: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER `PrefillCudaGraphRunner.capture_prepare`, which makes them."""
    setattr(result[0], _MARK, True)


def is_dummy(forward_batch: Any) -> bool:
    """Whether a batch is made up."""
    return hasattr(forward_batch, _MARK)
