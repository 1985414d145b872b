# SPDX-License-Identifier: Apache-2.0
"""A running server, live in the terminal."""
