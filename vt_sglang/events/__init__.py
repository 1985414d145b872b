# SPDX-License-Identifier: Apache-2.0
"""KV events: names of blocks, and the consumer that rebuilds a cache's contents from them. Knows nothing of SGLang."""
