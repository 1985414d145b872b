# SPDX-License-Identifier: Apache-2.0
"""Names of blocks, as SGLang 0.5.17 computes them for pages of as many tokens.

    digest(block) = SHA-256(digest(block before it), or nothing for a path's first, then its token ids as uint32)

with the ids in little-endian order; the name in an event is the digest's first 8 bytes as a big-endian int64.

SGLang leaves the namespace (cache salt, `extra_key`, LoRA adapter) out, so that the same tokens in two namespaces have
one name there, although they share no memory. Here a path's first block follows on a digest of its namespace, if it
has one. Without one the names are SGLang's.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 32

_NAMESPACE = b"vt-sglang namespace\0"


def namespace_digest(namespace: str | None) -> bytes | None:
    """What the first block of a path in this namespace follows on; None where there is no namespace."""
    return None if namespace is None else sha256(_NAMESPACE + namespace.encode("utf-8", "surrogatepass")).digest()


def block_digests(tokens: npt.NDArray[np.int64], block_tokens: int, before: bytes | None) -> list[bytes]:
    """Digests of the whole blocks of `tokens`; what is left at the end is not looked at.

    Args:
        tokens: [n] token ids, beginning where a block begins. Their lowest 32 bits count.
        before: digest of the block before the first, or the namespace's; None for neither.
    """
    raw = tokens.astype("<u4").tobytes()
    size = 4 * block_tokens
    digests = []
    digest = before or b""
    for start in range(0, len(raw) - size + 1, size):
        digest = sha256(digest + raw[start : start + size]).digest()
        digests.append(digest)
    return digests


def event_hash(digest: bytes) -> int:
    """The name that events give a block."""
    return int.from_bytes(digest[:8], "big", signed=True)


def split_digests(digests: bytes) -> Iterator[bytes]:
    """One digest after the other, of those that the core hands out in one piece."""
    return (digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES))


def as_token_array(tokens: Any, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Ids [start, stop) of a buffer of int64. A copy: a view would keep `array.array` from growing."""
    return np.asarray(tokens)[start:stop].astype(np.int64, copy=True)
