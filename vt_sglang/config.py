# SPDX-License-Identifier: Apache-2.0
"""The project's own options: launch flags, and environment variables that carry them to every process of a server."""

import difflib
import os
import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Self

MEMORY_LIMIT = "vtensor_memory_limit"
"""Among the `server_args` of SGLang's /set_internal_state: bytes that the KV cache may take; 0: all that the server was
started with."""

_PREFIX = "VTENSOR_"

# What Kubernetes sets in every container for a service whose name begins with `vtensor`.
_SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `2MiB`, `64k` or `4096` (units are powers of 1,024). ValueError if it is none."""
    found = re.fullmatch(r"\s*(\d+)\s*([kmg]?)(i?b)?\s*", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r} is not a size in bytes; write for example 2MiB, 64KiB or 4096")
    return int(found[1]) * _UNITS[found[2].lower()]


def parse_page_bytes(text: str) -> int | None:
    """Page size in bytes, None for `auto`. ValueError if it is neither, or no multiple of the system's page size."""
    if text.strip().lower() == "auto":
        return None
    page_bytes, unit = parse_bytes(text), os.sysconf("SC_PAGESIZE")
    if page_bytes == 0 or page_bytes % unit:
        raise ValueError(f"{text!r} is not a multiple of this system's pages of {unit} bytes; write for example 2MiB")
    return page_bytes


def parse_switch(text: str) -> bool:
    """ValueError if the text means neither on nor off."""
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("", "0", "false", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither on nor off; write 1 or 0")


def parse_block_tokens(text: str) -> int:
    """ValueError if the text is no whole number of tokens above 0."""
    if not text.strip().isdecimal() or int(text) == 0:
        raise ValueError(f"{text!r} is no number of tokens; write for example 64")
    return int(text)


def parse_seconds(text: str) -> float:
    """ValueError if the text is no number of seconds, 0 or more."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{text!r} is no number of seconds; write for example 60, or 0 for never")
    return seconds


class Kernel(StrEnum):
    """Which attention kernel: the project's own, FlashAttention-3, or what was measured to be faster."""

    AUTO = "auto"
    TRITON = "triton"
    FA3 = "fa3"


def parse_kernel(text: str) -> Kernel:
    """ValueError if there is no such kernel."""
    try:
        return Kernel(text.strip().lower())
    except ValueError:
        raise ValueError(f"{text!r} is no attention kernel; choose {', '.join(Kernel)}") from None


def parse_auto_or_off(text: str) -> bool:
    """ValueError if the text is neither `auto` nor `off` (nor 1 nor 0, as `to_environment` writes them)."""
    try:
        return {"auto": True, "1": True, "off": False, "0": False}[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text!r} is neither auto nor off") from None


@dataclass(frozen=True)
class VTensorConfig:
    """Options of the plug-in. Each field has a launch flag `--vtensor-NAME` and a variable `VTENSOR_NAME`."""

    page_bytes: int | None = None
    """Size of a physical page. None: the driver's granularity, or less on the host for very small models."""
    prefill_kernel: Kernel = Kernel.AUTO
    """What attends in prefill on a GPU."""
    decode_kernel: Kernel = Kernel.AUTO
    """What attends in decode on a GPU."""
    shared_decode: bool = True
    """Whether decode on a GPU reads what requests share once for all of them."""
    map_ahead: bool = True
    """Whether a thread maps and creates pages of GPU memory before they are needed."""
    exportable_pages: bool = False
    """Pages of GPU memory whose handles other processes can be given, as NCCL needs to register them."""
    event_block_tokens: int = 64
    """Tokens of the blocks that KV events tell of."""
    idle_trim: float = 0.0
    """Seconds without work after which the KV cache's memory goes back to the driver. 0: never."""
    check: bool = False
    """Prove every invariant of the core after every step. Slow; for finding bugs."""

    @classmethod
    def from_environment(cls) -> Self:
        """The options that the variables set. ValueError, naming the variable, for a value that cannot be, and for a
        name that begins as these do and is none of them."""
        _refuse_unknown([field.name.upper() for field in fields(cls)])
        parsers = {
            "page_bytes": parse_page_bytes,
            "prefill_kernel": parse_kernel,
            "decode_kernel": parse_kernel,
            "shared_decode": parse_auto_or_off,
            "map_ahead": parse_auto_or_off,
            "exportable_pages": parse_switch,
            "event_block_tokens": parse_block_tokens,
            "idle_trim": parse_seconds,
            "check": parse_switch,
        }
        values = {}
        for name, parse in parsers.items():
            variable = f"{_PREFIX}{name.upper()}"
            if (text := os.environ.get(variable)) is not None:
                try:
                    values[name] = parse(text)
                except ValueError as error:
                    raise ValueError(f"{variable}: {error}") from None
        return cls(**values)  # type: ignore[arg-type]  # each parser returns its field's type

    def to_environment(self) -> None:
        """Set the variables, for this process and those it starts."""
        for field in fields(self):
            value = getattr(self, field.name)
            text = "auto" if value is None else str(int(value) if isinstance(value, bool) else value)
            os.environ[f"{_PREFIX}{field.name.upper()}"] = text


def _refuse_unknown(known: list[str]) -> None:
    """ValueError for variables that look like an option's and set none: a name that is mistyped would else be no more
    than a default that stays."""
    told = []
    for variable in sorted(os.environ):
        name = variable.removeprefix(_PREFIX)
        if name == variable or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
        told.append(f"{variable} sets no option of vt-sglang; the nearest is {_PREFIX}{nearest}")
    if told:
        raise ValueError(f"{'; '.join(told)}. Correct the name, or unset the variable")
