# SPDX-License-Identifier: Apache-2.0
"""Admission in whole pages: what SGLang lets in can always be given its memory.

SGLang reckons in tokens. A request takes whole pages: the page on which its cached prefix ends, if that has to be
copied, and the page on which it will end. So each request is charged what its pages hold beyond its tokens. And where
the system lets a process have only so many mappings, nobody is let in whose pages could not be mapped.

Pages come on demand, and there may be no memory for them. So what the step takes is created before anybody is let in:
where that fails, the ledger has shrunk by the time it is asked.
"""

from typing import Any

from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, AddReqResult, PrefillAdder

from vt_sglang.adapter.allocation import pages_for_next_token
from vt_sglang.adapter.tree_cache import VTensorCache
from vt_sglang.layout import Geometry


class VTensorPrefillAdder(PrefillAdder):
    """SGLang's own where the server does not run on virtual tensors."""

    rem_chunk_tokens: Any  # int, or None where prompts are not cut into chunks

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._core: Any = self.tree_cache.core if isinstance(self.tree_cache, VTensorCache) else None
        self._rounding = 0  # tokens of room in the pages of admitted requests that SGLang does not count
        self._candidate = 0  # the same for the request being looked at
        self._step_pages = 0  # that this step takes, as far as it is planned
        self._mappable = 0  # pages that can be mapped for whom is admitted
        if self._core is not None:
            self._geometry = Geometry(self._core.page_bytes, self._core.token_bytes)
            if self.running_batch is not None:
                # Running requests may take their next page in the same step (mixed batches), and the step after.
                self._step_pages = pages_for_next_token(self._core, self._running())
                self._rounding = self._geometry.tokens_in(self._step_pages)
            self._mappable = max(self._core.mappable_pages() - self._step_pages, 0)

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
        new = _new_tokens(req)
        if self._geometry.pages_for(len(req.full_untruncated_fill_ids) + new) > self._mappable:
            return AddReqResult.NO_TOKEN
        if self._is_being_prepared(req):
            return AddReqResult.CONTINUE  # it keeps its place; those behind it need not wait
        alone = self._alone(0)
        result = self._judge(req, has_chunked_req, truncation_align_size, new)
        if not alone or self.can_run_list or result != AddReqResult.NO_TOKEN:
            return result
        # Nobody will ever make room for it, so memory is short. If not all that it may generate fits, it may still end
        # early; and if not even its prompt does, it has to go.
        self._core.create_ahead(0, retry=True)
        for reckoned in (new, min(new, 1)):
            req.init_next_round_input(self.tree_cache)  # a match that suits what there is
            result = self._judge(req, has_chunked_req, truncation_align_size, reckoned)
            if self.can_run_list or result != AddReqResult.NO_TOKEN:
                return result
        usage = self._core.usage()
        if usage["withheld_pages"] == 0 and usage["limit_pages"] == usage["budget_pages"]:
            return result
        self.tree_cache.hopeless.append(req)
        return AddReqResult.OTHER  # NO_TOKEN would keep all others waiting too

    def _is_being_prepared(self, req: Any) -> bool:
        """Whether the long prefix that the request has found is being mapped beside the work of others, who would stand
        still while it is mapped by a bind. Not for a request that there is no memory for yet."""
        long, found = self._core.copy_from_pages, self._geometry.page_of(len(req.prefix_indices))
        if not 0 < long <= found or not (self.can_run_list or self._running()):
            return False
        if not self._has_room(req):
            return False
        spare = max(self._spare_pages() - self._still_to_take(req), 0)
        return bool(self._core.prepare(req.last_node, long, spare) > 0)

    def _has_room(self, req: Any) -> bool:
        """Whether what the request may come to fits beside what is promised to others, as SGLang reckons."""
        tokens = len(req.full_untruncated_fill_ids) - len(req.prefix_indices) + _new_tokens(req)
        return bool(tokens + self.page_size < self.rem_total_tokens)

    def _running(self) -> list[Any]:
        """Requests that decode."""
        return [] if self.running_batch is None else [req for req in self.running_batch.reqs if not req.finished()]

    def _judge(self, req: Any, has_chunked_req: bool, truncation_align_size: int | None, reckoned: int) -> AddReqResult:
        """SGLang's own admission, with `reckoned` tokens to generate in place of all that the request may."""
        prefix, full, new = len(req.prefix_indices), len(req.full_untruncated_fill_ids), _new_tokens(req)
        # SGLang asks for `tokens + 1 < room`; two less than the pages hold makes that `pages <= pages to be had`.
        self._candidate = self._room(prefix, full + reckoned) - (full + new - prefix) - 2
        try:
            if self._has_room(req):  # else it is refused in any case
                chunk = full - prefix if self.rem_chunk_tokens is None else min(full - prefix, self.rem_chunk_tokens)
                self._core.create_ahead(self._step_pages + self._pages(prefix, prefix + max(chunk, 0)))
            result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        finally:
            self._candidate = 0
        if self.can_run_list and self.can_run_list[-1] is req:
            end = req.extend_range.end
            self._charge(prefix, end, new if end == full else 0)
            self._step_pages += self._pages(prefix, end)
            self._mappable -= self._geometry.pages_for(full + new)
            if 0 < self._core.copy_from_pages <= self._geometry.page_of(prefix):
                self.tree_cache.count_spare_pages = self._spare_pages
        return result

    def add_chunked_req(self, req: Any) -> Any:
        """Go on with a chunked request, by as much as pages can be had for; if for nothing, leave it for later."""
        if self._core is None:
            return super().add_chunked_req(req)
        prefix = len(req.prefix_indices)
        held = self._geometry.pages_for(prefix)
        end = min(prefix + self.rem_chunk_tokens, len(req.full_untruncated_fill_ids))
        self._core.create_ahead(self._step_pages + self._geometry.pages_for(end) - held)
        most = self._deliverable_after(prefix)
        if most <= 0 and self._alone(1):
            self._core.create_ahead(self._step_pages + 1, retry=True)
            most = self._deliverable_after(prefix)
            if most <= 0 and self._core.deliverable_pages() == 0:
                self.tree_cache.hopeless.append(req)
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
        pages = self._geometry.pages_for(req.extend_range.end) - held
        self._step_pages += pages
        self._mappable -= pages
        return unfinished

    def _spare_pages(self) -> int:
        """Pages that are free even when the step has what it takes, and would be left if all requests, running and let
        in, came to their longest. To be asked before any of the step's requests has its memory."""
        requests = [*self._running(), *self.can_run_list]
        promised = sum(self._still_to_take(req) for req in requests)
        free = self._core.usage()["free_pages"] - self._step_pages
        return int(max(min(free, self._core.deliverable_pages() - promised), 0))

    def _still_to_take(self, req: Any) -> int:
        """Pages, until the request has come to its longest."""
        end = len(req.origin_input_ids) + req.sampling_params.max_new_tokens
        if req.req_pool_idx is None:
            return self._pages(len(req.prefix_indices), end)
        return max(self._geometry.pages_for(end) - self._geometry.pages_for(req.kv.kv_allocated_len), 0)

    def _alone(self, live_slots: int) -> bool:
        """Whether only so many requests hold memory, and nobody else is about to."""
        return not self.can_run_list and self._core.usage()["live_slots"] == live_slots

    def _deliverable_after(self, prefix: int) -> int:
        """Tokens for which a request that holds so many can be given pages now."""
        pages = min(self._core.deliverable_pages() - self._step_pages, self._mappable)
        return self._geometry.tokens_in(self._geometry.pages_for(prefix) + pages) - prefix

    def _pages(self, start: int, end: int) -> int:
        """Pages that tokens [start, end) take, if the one on which `start` lies has to be copied."""
        return self._geometry.pages_for(end) - self._geometry.page_of(start)

    def _room(self, start: int, end: int) -> int:
        """Tokens that the pages of tokens [start, end) hold, if the one on which `start` lies has to be copied."""
        return self._geometry.tokens_in(self._pages(start, end))

    def _charge(self, start: int, end: int, new: int) -> None:
        self._rounding += max(self._room(start, end + new) - (end + new - start) - self.page_size, 0)


def _new_tokens(req: Any) -> int:
    """How many tokens a request may still generate, as SGLang reckons."""
    return int(min(max(req.sampling_params.max_new_tokens - len(req.output_ids), 0), CLIP_MAX_NEW_TOKENS))
