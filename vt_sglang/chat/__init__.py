# SPDX-License-Identifier: Apache-2.0
"""Play the same dialogues on two SGLang servers, one after the other, and compare what they answered and how fast."""
