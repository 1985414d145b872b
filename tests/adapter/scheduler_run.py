# SPDX-License-Identifier: Apache-2.0
"""Run a script of requests through one real SGLang Scheduler in this process, and write what came of it as JSON.

    python scheduler_run.py SETTINGS.json RESULT.json

The scheduler's own event loop runs; only the place where it receives requests is the script's. SGLang keeps much
state in globals, so that every run is a process of its own.
"""

import functools
import json
import os
import sys
from array import array
from pathlib import Path
from typing import Any

# Before SGLang is imported, which reads them.
os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")

sys.path.insert(0, str(Path(__file__).parent))
from workload import Workload


class Run:
    """One scheduler, and the requests that went through it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.managers import scheduler
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import PortArgs, ServerArgs

        if "mapping_limit" in settings:
            from vt_sglang.adapter import pools

            pools.KVCache = functools.partial(pools.KVCache, mapping_limit=settings["mapping_limit"])

        arguments = ServerArgs(**settings["server_args"])
        arguments.check_server_args()
        ports = PortArgs.init_new(arguments)
        publish(arguments, role="scheduler")
        self.scheduler = scheduler.Scheduler(arguments, ports, 0, 0, 0, 0, 0, 0, None)
        self.workload = Workload(settings["workload"], self)
        self.steps = 0
        self.requests: dict[str, Any] = {}  # by rid
        self.aborted: set[str] = set()
        self._idle_steps = 0
        self._watch()

    # ---- what the workload does

    def request(
        self, rid: str, tokens: list[int], *, new: int, extra_key: str | None = None, priority: int | None = None
    ) -> Any:
        """A generation request, greedy, for exactly `new` tokens."""
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        sampling = SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)
        sampling.normalize(None)
        sampling.verify(self.scheduler.model_config.vocab_size)
        return TokenizedGenerateReqInput(
            rid=rid,
            input_text="",
            input_ids=array("q", tokens),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=sampling,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
            extra_key=extra_key,
            priority=priority,
        )

    def abort(self, rid: str) -> Any:
        """Ask for a request to be aborted."""
        from sglang.srt.managers.io_struct import AbortReq

        self.aborted.add(rid)
        return AbortReq(rid=rid)

    def done(self, rid: str) -> bool:
        """Whether a request came to its end; one aborted while it waits just vanishes from the queue."""
        req = self.requests.get(rid)
        if req is None:
            return False
        vanished = rid in self.aborted and req not in self.scheduler.waiting_queue and req.req_pool_idx is None
        return req.finished() or vanished

    def flush(self) -> None:
        """Empty the cache, which needs an idle scheduler."""
        assert self.scheduler.flush_cache(), "the cache was not flushed"

    @property
    def idle(self) -> bool:
        """Whether the scheduler has nothing to do, and has had a step to check its pools."""
        return self._idle_steps >= 2

    # ---- the loop

    def _watch(self) -> None:
        scheduler = self.scheduler
        queue = scheduler._add_request_to_queue

        def add(req: Any, is_retracted: bool = False) -> Any:
            self.requests[req.rid] = req
            return queue(req, is_retracted=is_retracted)

        scheduler._add_request_to_queue = add
        scheduler.request_receiver = self

    def recv_requests(self) -> list[Any]:
        """Called by the event loop at the start of every step."""
        scheduler = self.scheduler
        self.steps += 1
        core = getattr(scheduler.tree_cache, "core", None)
        if core is not None:
            core.check()
        self._idle_steps = self._idle_steps + 1 if scheduler.is_fully_idle() else 0
        if self.steps > 20000:
            raise RuntimeError(f"the workload does not come to an end: {self.workload.waiting_for()}")
        new = self.workload.step()
        if new is None:
            scheduler.gracefully_exit = True
            return []
        return new

    def go(self) -> dict[str, Any]:
        """Run to the end of the workload."""
        self.scheduler.run_event_loop()
        cache = self.scheduler.tree_cache
        result: dict[str, Any] = {
            "steps": self.steps,
            "retractions": sum(req.retraction_count for req in self.requests.values()),
            "overlap": self.scheduler.enable_overlap,
            "cache": type(cache).__name__,
            "capacity": self.scheduler.max_total_num_tokens,
            "prompts": {rid: list(req.origin_input_ids) for rid, req in self.requests.items()},
            "outputs": {rid: list(req.output_ids) for rid, req in self.requests.items()},
            # SGLang samples nothing for a request of no new tokens, and appends a placeholder.
            "generates": [rid for rid, req in self.requests.items() if req.sampling_params.max_new_tokens > 0],
            "aborted": sorted(self.aborted),
            "cached": {rid: req.cached_tokens for rid, req in self.requests.items()},
            "finished": {
                rid: None if req.finished_reason is None else type(req.finished_reason).__name__
                for rid, req in self.requests.items()
            },
            "seen": sorted(self.workload.seen),
        }
        if hasattr(cache, "core"):
            from vt_sglang.adapter.state import describe

            cache.core.check()
            result["vtensor"] = describe(cache)
        return result


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    os.environ.update(settings.get("environment", {}))
    result = Run(settings).go()
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
