# SPDX-License-Identifier: Apache-2.0
"""Admission in whole pages: what SGLang lets in can always be given its memory.

SGLang reckons in tokens. A request takes whole pages: the page on which its cached prefix ends, if that has to be
copied, and the page on which it will end. So each request is charged what its pages hold beyond its tokens. And where
the system lets a process have only so many mappings, nobody is let in whose pages could not be mapped.
"""

from typing import Any

from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, AddReqResult, PrefillAdder

from vt_sglang.adapter.allocation import pages_for_next_token
from vt_sglang.adapter.tree_cache import VTensorCache
from vt_sglang.layout import Geometry


class VTensorPrefillAdder(PrefillAdder):
    """SGLang's own where the server does not run on virtual tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._core = self.tree_cache.core if isinstance(self.tree_cache, VTensorCache) else None
        self._rounding = 0  # tokens of room in the pages of admitted requests that SGLang does not count
        self._candidate = 0  # the same for the request being looked at
        self._decode_pages = 0
        self._mappable = 0  # pages that can be mapped for whom is admitted
        if self._core is not None:
            self._geometry = Geometry(self._core.page_bytes, self._core.token_bytes)
            if self.running_batch is not None:
                # Running requests may take their next page in the same step (mixed batches), and the step after.
                running = [req for req in self.running_batch.reqs if not req.finished()]
                self._decode_pages = pages_for_next_token(self._core, running)
                self._rounding = self._geometry.tokens_in(self._decode_pages)
            self._mappable = max(self._core.mappable_pages() - self._decode_pages, 0)

    @property
    def rem_total_tokens(self) -> float:
        """Tokens left for requests and what they will generate."""
        return float(super().rem_total_tokens - self._rounding - self._candidate)

    @property
    def cur_rem_tokens(self) -> float:
        """Tokens left for this step."""
        return float(super().cur_rem_tokens - self._rounding)

    def add_one_req(self, req: Any, has_chunked_req: bool, truncation_align_size: int | None) -> AddReqResult:
        """Admit a waiting request if its pages can be had, and mapped."""
        if self._core is None:
            return super().add_one_req(req, has_chunked_req, truncation_align_size)
        prefix = len(req.prefix_indices)
        new = min(max(req.sampling_params.max_new_tokens - len(req.output_ids), 0), CLIP_MAX_NEW_TOKENS)
        end = len(req.full_untruncated_fill_ids) + new
        # SGLang asks for `tokens + 1 < room`; two less than the pages hold makes that `pages <= pages to be had`.
        if (mapped := self._geometry.pages_for(end)) > self._mappable:
            return AddReqResult.NO_TOKEN
        self._candidate = self._room(prefix, end) - (end - prefix) - 2
        try:
            result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        finally:
            self._candidate = 0
        if self.can_run_list and self.can_run_list[-1] is req:
            whole = req.extend_range.end == len(req.full_untruncated_fill_ids)
            self._charge(prefix, req.extend_range.end, new if whole else 0)
            self._mappable -= mapped
        return result

    def add_chunked_req(self, req: Any) -> Any:
        """Go on with a chunked request, by as much as pages can be had for; if for nothing, leave it for later."""
        if self._core is None:
            return super().add_chunked_req(req)
        prefix = len(req.prefix_indices)
        held = self._geometry.pages_for(prefix)
        pages = held + min(self._core.deliverable_pages() - self._decode_pages, self._mappable)
        most = self._geometry.tokens_in(pages) - prefix
        if most <= 0:
            # As SGLang parks a chunk itself (hybrid SWA). Nobody else may be admitted: the step would count the chunk
            # as run.
            self.rem_chunk_tokens = 0
            return req
        spared = max(self.rem_chunk_tokens - most, 0)
        self.rem_chunk_tokens -= spared
        unfinished = super().add_chunked_req(req)
        self.rem_chunk_tokens += spared
        self._charge(prefix, req.extend_range.end, 0)
        self._mappable -= self._geometry.pages_for(req.extend_range.end) - held
        return unfinished

    def _room(self, start: int, end: int) -> int:
        """Tokens that the pages of tokens [start, end) hold, if the one on which `start` lies has to be copied."""
        return self._geometry.tokens_in(self._geometry.pages_for(end) - self._geometry.page_of(start))

    def _charge(self, start: int, end: int, new: int) -> None:
        self._rounding += max(self._room(start, end + new) - (end + new - start) - self.page_size, 0)
