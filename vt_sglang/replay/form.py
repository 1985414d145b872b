# SPDX-License-Identifier: Apache-2.0
"""The formats of traces, by name."""

from enum import StrEnum


class Format(StrEnum):
    """`auto`: what the first line that can be recognised is."""

    AUTO = "auto"
    MOONCAKE = "mooncake"
    CHAT = "chat"
    TOKENS = "tokens"
    SGLANG = "sglang"
