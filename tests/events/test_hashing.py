# SPDX-License-Identifier: Apache-2.0
"""Names of blocks."""

from hashlib import sha256

import numpy as np

from vt_sglang.events.hashing import block_digests, event_hash, namespace_digest, split_digests


def _tokens(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


def test_a_block_is_hashed_behind_all_before_it() -> None:
    """Written out a second time, by the formula."""
    first = sha256(b"\x05\0\0\0\x06\0\0\0").digest()
    second = sha256(first + b"\x07\0\0\0\x00\x00\x01\x00").digest()
    assert block_digests(_tokens(5, 6, 7, 65536, 9), 2, None) == [first, second]
    assert block_digests(_tokens(7, 65536), 2, first) == [second]
    assert block_digests(_tokens(7), 2, first) == []
    assert list(split_digests(first + second)) == [first, second]


def test_names_are_those_of_sglang() -> None:
    """What SGLang 0.5.17's get_hash_str and hash_str_to_int64 gave, in pages of 4 and of 64."""
    names = [event_hash(digest) for digest in block_digests(np.arange(12, dtype=np.int64), 4, None)]
    assert names == [-4977211910723114241, 90435953025800507, -190329471204100490]
    ids = (np.arange(150, dtype=np.int64) * 2654435761 + 7) % 2**32
    names = [event_hash(digest) for digest in block_digests(ids, 64, None)]
    assert names == [4067742127597132831, 4505487966807283713]


def test_namespaces_share_no_names() -> None:
    assert namespace_digest(None) is None
    kinds = [None, "", "a", "b", "\udcff"]
    names = {block_digests(_tokens(1, 2), 2, namespace_digest(kind))[0] for kind in kinds}
    assert len(names) == len(kinds)
