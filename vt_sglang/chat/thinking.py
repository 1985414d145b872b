# SPDX-License-Identifier: Apache-2.0
"""How users' think times are distributed; apart from pace.py, as the command line needs it to show its help."""

from enum import StrEnum


class Thinking(StrEnum):
    EXPONENTIAL = "exponential"
    CONSTANT = "constant"
