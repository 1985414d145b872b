# SPDX-License-Identifier: Apache-2.0
"""Memory of a server's KV cache, as the server itself tells."""

import asyncio
import time
from typing import Any

from vt_sglang.chat.endpoint import Endpoint


def kv_bytes(info: dict[str, Any] | None) -> int | None:
    """Memory that the KV cache has taken: all of it at the start in stock SGLang, by and by on virtual tensors.

    Args:
        info: what `/server_info` says; None if it says nothing.
    """
    state = info["internal_states"][0] if info else {}
    if vtensor := state.get("vtensor"):
        taken: int | None = vtensor.get("physical_bytes")
        return taken
    pool = state.get("memory_usage", {}).get("kvcache")
    return None if pool is None else round(pool * 2**30)


async def watch(server: Endpoint, every_s: float, samples: list[dict[str, Any]]) -> None:
    """Add samples, `time_s` since this call and `kv_bytes`, until cancelled. Asking takes the server's scheduler some
    tenths of a millisecond."""
    began = time.perf_counter()
    while True:
        asked = time.perf_counter() - began
        taken = kv_bytes(await server.info())
        if taken is not None:
            samples.append({"time_s": round(asked, 3), "kv_bytes": taken})
        await asyncio.sleep(every_s)
