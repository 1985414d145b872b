# SPDX-License-Identifier: Apache-2.0
"""One of two processes that exchange slots of virtual tensors, in place. Exits with 0 where all values arrived.

    python nccl_rank.py {nccl,gloo} RANK PORT {0,1}

The last is whether pages are exportable; gloo takes the CPU's memory, to try the script itself.
"""

import os
import sys

# Multicast is not what is tested, and not every machine lends it.
os.environ["NCCL_NVLS_ENABLE"] = "0"

import torch
import torch.distributed as dist

from vt_sglang._core import KVCache

PAGE = 2 * 2**20
TOKENS_A_PAGE = 16
ELEMENTS = PAGE // TOKENS_A_PAGE // 4  # float32 words of a token
TOKENS = 100  # seven pages of a slot


def main() -> None:
    backend, rank, port, exportable = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "1"
    on_gpu = backend == "nccl"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(rank)
        torch.cuda.init()
    cache = KVCache(
        driver="cuda" if on_gpu else "host",
        device=rank if on_gpu else 0,
        page_bytes=0 if on_gpu else PAGE,
        token_bytes=PAGE // TOKENS_A_PAGE,
        slots=4,
        slot_tokens=200,
        budget_pages=40,
        exportable_pages=exportable,
    )
    shape = [cache.slots, cache.slot_tokens, ELEMENTS]
    strides = [cache.slot_tokens * ELEMENTS, ELEMENTS, 1]
    slots = torch.utils.dlpack.from_dlpack(cache.tensor(0, shape, strides, "float32"))
    assert slots.device == device
    first, second = (cache.bind(None, 0, TOKENS)[0] for _ in range(2))
    reduced, sent = slots[first, :TOKENS], slots[second, :TOKENS]
    assert reduced.data_ptr() == cache.base + first * cache.slot_tokens * cache.token_bytes
    words = (torch.arange(TOKENS * ELEMENTS, device=device) % 1021).view(TOKENS, ELEMENTS).float()
    reduced.copy_(words + rank)
    sent.copy_(words * (1 - rank))
    dist.init_process_group(
        backend,
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        device_id=device if on_gpu else None,
    )
    dist.all_reduce(reduced)
    if rank == 0:
        dist.send(sent, 1)
    else:
        dist.recv(sent, 0)
    if on_gpu:
        torch.cuda.synchronize()
    assert torch.equal(reduced, 2 * words + 1), "all_reduce gave other values"
    assert torch.equal(sent, words), "what was sent did not arrive"
    dist.destroy_process_group()
    cache.check()


if __name__ == "__main__":
    main()
