# SPDX-License-Identifier: Apache-2.0
"""Virtual tensors for SGLang: one contiguous KV cache for every request."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vt-sglang")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"
