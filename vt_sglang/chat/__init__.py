# SPDX-License-Identifier: Apache-2.0
"""Play the same dialogues on several SGLang servers, and compare what they answered and how fast."""
