# SPDX-License-Identifier: Apache-2.0
"""What the adapter counts beside the core: how long the prompts were, and how many tokens attention read."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Tally:
    """Sums since the start. They only go up: forgetting the cache does not touch them.

    A request is *bound again* when it comes back after SGLang retracted it. Its prompt is then what it has to have
    before it can go on, its own output included.
    """

    prompt_tokens: int = 0
    """Of all requests bound, each as often as it was bound."""
    rebound_requests: int = 0
    rebound_prompt_tokens: int = 0
    rebound_cached_tokens: int = 0
    prefill_read_tokens: int = 0
    """Tokens whose KV the attention of prefills read: for each request of each forward all its tokens so far, once,
    however many queries there are."""
    decode_read_tokens: float = 0
    """The same of the requests that decoded, in mixed batches too; what several share and read together, as often as it
    was read."""
    decode_saved_tokens: float = 0.0
    """How many more it would have been without."""
    forward_waits: int = 0
    """Times that the scheduler waited for forwards to end, as memory could be had only then."""
    forward_wait_s: float = 0.0

    def bound(self, req: Any) -> None:
        """A request got its slot, backed with the prefix that was found for it."""
        tokens = len(req.full_untruncated_fill_ids)
        self.prompt_tokens += tokens
        if req.retracted_stain:
            self.rebound_requests += 1
            self.rebound_prompt_tokens += tokens
            self.rebound_cached_tokens += len(req.prefix_indices)

    def waited(self, seconds: float) -> None:
        """For forwards, so that memory could be had."""
        self.forward_waits += 1
        self.forward_wait_s += seconds

    def saved(self, tokens: float) -> None:
        """What the decode of a batch did not have to read, averaged over the layers."""
        self.decode_saved_tokens += tokens
        self.decode_read_tokens -= tokens

    def forward(self, batch: Any) -> None:
        """A batch is about to run. Its `seq_lens_cpu` count the tokens that the forward itself adds."""
        lengths = batch.seq_lens_cpu.tolist()  # for batches of some hundreds, sooner than to have torch or numpy sum
        tokens = sum(lengths)
        if not batch.forward_mode.is_extend():
            self.decode_read_tokens += tokens
            return
        decoding = batch.mix_running_indices  # of a mixed batch; its requests stand last
        decoded = 0 if decoding is None else sum(lengths[len(lengths) - len(decoding) :])
        self.decode_read_tokens += decoded
        self.prefill_read_tokens += tokens - decoded
