# SPDX-License-Identifier: Apache-2.0
"""The project's attention kernels beside FlashAttention-3 and SGLang's Triton kernels, on one GPU, in one run.

    python bench/kernels.py {decode,prefill,shared} [--sweep] [--short] [--json bench/results/decode.json]

The project's kernels read token-major virtual tensors `[slot][token][layer][K, V][kv head][head dim]`; the others read
layers of their own through a table over scattered pages, of 1 token as SGLang runs them, and more. Every time is the
median of CUDA-graph replays that go through several layers, so that the L2 cache stays cold.
"""

import argparse
import importlib
import sys
from pathlib import Path

from common import write_json
from rich.console import Console

_OPERATIONS = ("decode", "prefill", "shared")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operation", choices=_OPERATIONS)
    parser.add_argument("--sweep", action="store_true", help="try many configurations of the project's kernel")
    parser.add_argument("--short", action="store_true", help="prefill only: short prompts in place of the usual shapes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.short and arguments.operation != "prefill":
        parser.error("--short: there are such shapes of prefill only")
    import torch  # not for --help: it takes seconds

    if not torch.cuda.is_available():
        sys.exit("bench/kernels.py: it needs a CUDA GPU, and PyTorch finds none here")
    try:
        operation = importlib.import_module(f"attention_{arguments.operation}")
    except ModuleNotFoundError as error:
        sys.exit(f"bench/kernels.py: {error}. It needs SGLang with its kernels for GPUs (pip install sglang==0.5.17)")
    try:
        rows = operation.measure(arguments.sweep, **({"short": True} if arguments.short else {}))
    except ValueError as error:
        parser.error(str(error))
    Console(width=130).print(operation.table(rows))
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
