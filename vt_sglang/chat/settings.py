# SPDX-License-Identifier: Apache-2.0
"""What the user asked for."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vt_sglang.chat.generator import Shape


class Answers(StrEnum):
    """Where the answers come from with which a dialogue's history goes on."""

    GENERATED = "generated"
    FILE = "file"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Which(StrEnum):
    STOCK = "stock"
    VTENSOR = "vtensor"


@dataclass(frozen=True)
class Settings:
    model_path: str | None
    """None: the toy model."""
    dialogues: Path | Shape
    """A file, or what is to be generated."""
    limit: int | None
    output_tokens: int
    clients: int
    answers: Answers
    device: Device
    context_length: int
    max_total_tokens: int | None
    server_args: tuple[str, ...]
    stock_args: tuple[str, ...]
    vtensor_args: tuple[str, ...]
    only: Which | None
    report: Path
    timeout_s: float
