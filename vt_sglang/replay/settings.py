# SPDX-License-Identifier: Apache-2.0
"""What a replay is asked for."""

from dataclasses import dataclass
from pathlib import Path

from vt_sglang.replay.form import Format


class UsageError(ValueError):
    """Options that make no sense together, or on this trace."""


@dataclass(frozen=True)
class Settings:
    trace: Path
    form: Format
    skip_bad: bool
    outputs: bool
    tokenizer: str | None
    capacities: tuple[str, ...]
    """As they were written; empty: chosen from the trace."""
    model: str
    kv_dtype: str
    token_bytes: int | None
    page_bytes: str
    grain: int
    """Tokens of a block; 1: no blocks."""
    chunk: int
    """Tokens of a prompt that are computed, and recorded, at a time; 0: the whole prompt."""
    slots: int
    radix: bool
    repeats: int
    json: Path | None
