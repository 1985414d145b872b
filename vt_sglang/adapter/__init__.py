# SPDX-License-Identifier: Apache-2.0
"""Everything that knows SGLang, and which version of it."""
