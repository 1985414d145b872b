# SPDX-License-Identifier: Apache-2.0
"""Traces of requests, run through the core's tree and page pool without a model."""
