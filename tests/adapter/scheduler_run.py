# SPDX-License-Identifier: Apache-2.0
"""Run a script of requests through one real SGLang Scheduler in this process, and write what came of it as JSON.

    python scheduler_run.py SETTINGS.json RESULT.json

The scheduler's own event loop runs; only the place where it receives requests is the script's. SGLang keeps much
state in globals, so that every run is a process of its own (scheduler_forks.py makes those of a machine without a GPU).
"""

import functools
import json
import os
import sys
import types
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def prepare_environment(*, on_cpu: bool) -> None:
    """What SGLang reads when it is imported; before that."""
    if on_cpu:
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")


def force_tokens(run: "Run") -> None:
    """Have every request go on with tokens that depend on the position alone, whatever the model would choose: so that
    what two servers think can be compared to the end. Log probabilities are the model's, and are noted of every batch:
    SGLang itself mixes none whose log probabilities are asked for."""
    import torch
    from sglang.srt.layers.sampler import Sampler

    def forward(
        self: Any,
        logits_output: Any,
        _sampling_info: Any,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int]],
        positions: torch.Tensor,
    ) -> torch.Tensor:
        logits = logits_output.next_token_logits
        tokens: torch.Tensor = (positions.long() * 7919 + positions.long() ** 2 % 101) % logits.shape[-1]
        its = torch.log_softmax(logits.float(), dim=-1)
        if run.noted is not None and len(run.batch) == len(tokens):
            run.noted.append((run.batch, positions.clone(), its.gather(1, tokens[:, None])[:, 0]))
        if return_logprob:
            found = self.output_logprob_processor.compute_logprobs(its, top_logprobs_nums, token_ids_logprobs, tokens)
            found.write_output_to(logits_output)
        return tokens

    Sampler.forward = forward


POISON = 2**31 - 1
"""An index of no token: on a GPU what reads there faults, on a CPU it is out of range."""


def poison_index_table() -> None:
    """Have SGLang's table of token indices hold nothing that could be used."""
    from vt_sglang.adapter.rows import VTensorRows

    bound = VTensorRows.bound

    def poisoned(rows: Any, slot: int) -> None:
        bound(rows, slot)
        rows.req_to_token.fill_(POISON)

    VTensorRows.bound = poisoned  # type: ignore[method-assign]


class _Unmappable:
    """A core whose driver has no memory for any mapping; or one without the pages that admission counted on."""

    def __init__(self, core: Any, error: str) -> None:
        self._core, self._error = core, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def bind(self, *_: Any) -> None:
        from vt_sglang import _core

        raise getattr(_core, self._error)("cuMemMap failed")

    grow = bind


class _Ungrowable:
    """A core whose driver has no memory for one token more of a slot that has some, in the steps that lack it."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._ends: dict[int, int] = {}
        self.lacking = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def grow(self, slots: Any, ends: Any, guard: int = 0) -> None:
        from vt_sglang._core import OutOfMemory

        pairs = dict(zip(slots.tolist(), ends.tolist(), strict=True))
        if self.lacking and any(self._ends.get(slot) == end - 1 for slot, end in pairs.items()):
            raise OutOfMemory("cuMemMap failed")
        self._core.grow(slots, ends, guard)
        self._ends |= pairs


class Run:
    """One scheduler, and the requests that went through it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.managers import scheduler
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import PortArgs, ServerArgs

        if core := settings.get("core"):  # arguments in place of the adapter's
            from vt_sglang.adapter import pools

            make = pools.KVCache
            pools.KVCache = lambda **arguments: make(**(arguments | core))
        # From a step on there is memory for so many pages; None: for all.
        self._memory: dict[int, int | None] = {int(step): it for step, it in settings.get("memory", {}).items()}
        if self._memory:
            from vt_sglang.adapter import pools

            pools.KVCache = functools.partial(pools.KVCache, inject_faults=True)

        # Steps in which the driver has no memory to map anything, as [first, behind the last].
        self._unmappable = [range(*steps) for steps in settings.get("unmappable", [])]
        self._unmappable_error = settings.get("unmappable_error", "OutOfMemory")
        # Likewise, where only requests that decode cannot grow.
        self._ungrowable = [range(*steps) for steps in settings.get("ungrowable", [])]
        if self._unmappable or self._ungrowable:
            from vt_sglang.adapter import patience

            patience.time = types.SimpleNamespace(sleep=lambda _: None)  # nothing changes by waiting

        # What a mixed batch must save for its requests that decode to be read together; counts what they saved.
        self.mixed_saved_tokens = 0.0
        if "least_mixed_bytes" in settings:
            self._watch_mixed(settings["least_mixed_bytes"])

        if settings.get("poison_index_table"):
            poison_index_table()
        arguments = ServerArgs(**settings["server_args"])
        arguments.check_server_args()
        ports = PortArgs.init_new(arguments)
        publish(arguments, role="scheduler")
        self.scheduler = scheduler.Scheduler(arguments, ports, 0, 0, 0, 0, 0, 0, None)
        self.steps = 0
        self._most_steps = settings.get("most_steps", 20000)
        self._check_every = settings.get("check_every", 1)
        self.requests: dict[str, Any] = {}  # by rid
        self.aborted: set[str] = set()
        self.retractions = 0  # of requests that are forgotten
        self._idle_steps = 0
        from branches import Branches
        from generations import Generations
        from soak import Soak
        from trunk import Trunk
        from workload import Workload

        kinds = {
            "soak": Soak,
            "generations": Generations,
            "workload": Workload,
            "branches": Branches,
            "trunk": Trunk,
        }
        self.batch: list[str] = []  # its requests
        self.modes: Counter[str] = Counter()  # of the batches that were run
        # Requests, positions [requests] and the log probabilities there of what was forced to come next [requests].
        self.noted: list[tuple[list[str], Any, Any]] | None = [] if settings["workload"].get("noted") else None
        if settings["workload"].get("forced"):
            force_tokens(self)
        self.workload = kinds[settings["workload"].get("kind", "workload")](settings["workload"], self)
        self._watch()

    # ---- what the workload does

    def request(
        self,
        rid: str,
        tokens: list[int],
        *,
        new: int,
        extra_key: str | None = None,
        priority: int | None = None,
        logprobs: bool = False,
    ) -> Any:
        """A generation request, greedy, for exactly `new` tokens; with the log probabilities of the two best."""
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
            return_logprob=logprobs,
            logprob_start_len=-1,
            top_logprobs_num=2 if logprobs else 0,
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
        gave_up = req.to_finish is not None and req.req_pool_idx is None  # SGLang's last resort when memory is short
        return req.finished() or vanished or gave_up

    def flush(self) -> None:
        """Empty the cache, which needs an idle scheduler."""
        assert self.scheduler.flush_cache(), "the cache was not flushed"

    def read_kv(self, tokens: list[int], extra_key: str | None) -> Any:
        """K and V of what the tree holds of a sequence, through a virtual tensor: [layers, 2, tokens, kv heads,
        head_dim] float32."""
        import torch

        cache = self.scheduler.tree_cache
        core, pool = cache.core, cache.kv_pool
        node, count = core.match(extra_key, array("q", tokens))
        core.lock(node)
        slot = core.bind(extra_key, node, max(count, 1))[0]
        if self.scheduler.server_args.device != "cpu":
            torch.cuda.synchronize()
        layers = range(pool.layout.layers)
        pairs = [torch.stack(pool.slot_view(pool.start_layer + layer, slot, count)) for layer in layers]
        core.release(slot)
        core.unlock(node)
        return torch.stack(pairs).float().cpu()

    @property
    def idle(self) -> bool:
        """Whether the scheduler has nothing to do, and has had a step to check its pools."""
        return self._idle_steps >= 2

    def _noted(self) -> dict[str, list[float]]:
        """By request, the log probability of each token that it was forced to go on with."""
        found: dict[str, dict[int, float]] = {}
        for rids, positions, probabilities in self.noted or ():
            for rid, position, its in zip(rids, positions.tolist(), probabilities.tolist(), strict=True):
                found.setdefault(rid, {})[position] = its
        lengths = {rid: (len(self.requests[rid].origin_input_ids), len(self.requests[rid].output_ids)) for rid in found}
        return {rid: [found[rid][old - 1 + step] for step in range(new)] for rid, (old, new) in lengths.items()}

    # ---- the loop

    def _watch(self) -> None:
        scheduler = self.scheduler
        queue = scheduler._add_request_to_queue

        def add(req: Any, is_retracted: bool = False) -> Any:
            self.requests[req.rid] = req
            return queue(req, is_retracted=is_retracted)

        run_batch = scheduler.run_batch

        def run(batch: Any, *args: Any, **kwargs: Any) -> Any:
            self.batch = [req.rid for req in batch.reqs]
            self.modes[batch.forward_mode.name] += 1
            return run_batch(batch, *args, **kwargs)

        scheduler._add_request_to_queue = add
        scheduler.run_batch = run
        scheduler.request_receiver = self

    def _watch_mixed(self, least_bytes: int) -> None:
        from vt_sglang.adapter import mixed

        mixed.LEAST_SAVED_BYTES = least_bytes
        prepare = mixed.MixedBatches.prepare

        def watched(batches: Any, forward_batch: Any) -> None:
            prepare(batches, forward_batch)
            self.mixed_saved_tokens += batches._pool.batch_saved_tokens

        mixed.MixedBatches.prepare = watched

    def recv_requests(self) -> list[Any]:
        """Called by the event loop at the start of every step."""
        scheduler = self.scheduler
        self.steps += 1
        core = getattr(scheduler.tree_cache, "core", None)
        if core is not None and self.steps % self._check_every == 0:
            core.check()
        if self.steps in self._memory:
            pages = self._memory[self.steps]
            core.clear_faults() if pages is None else core.limit_memory(pages)
        if self._unmappable:
            real = core._core if isinstance(core, _Unmappable) else core
            lacking = any(self.steps in steps for steps in self._unmappable)
            scheduler.tree_cache.core = _Unmappable(real, self._unmappable_error) if lacking else real
        if self._ungrowable:
            if not isinstance(core, _Ungrowable):
                core = scheduler.tree_cache.core = _Ungrowable(core)
            core.lacking = any(self.steps in steps for steps in self._ungrowable)
        self._idle_steps = self._idle_steps + 1 if scheduler.is_fully_idle() else 0
        if self.steps > self._most_steps:
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
            "retractions": self.retractions + sum(req.retraction_count for req in self.requests.values()),
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
                rid: None if reason is None else type(reason).__name__
                for rid, req in self.requests.items()
                for reason in [req.finished_reason or req.to_finish]
            },
            "seen": sorted(self.workload.seen),
            "kinds": getattr(self.workload, "kinds", {}),
            "modes": self.modes,
            "noted": self._noted(),
            "logprobs": {
                rid: [
                    [token, chosen, best, its]
                    for token, chosen, best, its in zip(
                        req.output_ids,
                        req.logprob.output_token_logprobs_val,
                        req.logprob.output_top_logprobs_idx,
                        req.logprob.output_top_logprobs_val,
                        strict=True,
                    )
                ]
                for rid, req in self.requests.items()
                if req.return_logprob
            },
            "prefixes": getattr(self.workload, "prefixes", []),
            "saved": getattr(self.workload, "saved", {}),
            "admitted": getattr(self.workload, "admitted", []),
        }
        if hasattr(cache, "core"):
            from vt_sglang.adapter.state import describe

            cache.core.check()
            result["vtensor"] = describe(cache)
            result["mixed_saved_tokens"] = self.mixed_saved_tokens
            if cache.metrics is not None:
                result["metrics"] = scrape()
        return result


def scrape() -> dict[str, float]:
    """What /metrics would say, as SGLang's HTTP process gathers it."""
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess

    from vt_sglang.watch.sample import table

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return table(generate_latest(registry).decode())


def main(settings_file: Path, result_file: Path) -> None:
    """One run, of the settings in a file; its result goes to another."""
    settings = json.loads(settings_file.read_text())
    prepare_environment(on_cpu=settings["server_args"]["device"] == "cpu")
    os.environ.update(settings.get("environment", {}))
    if settings["server_args"].get("enable_metrics"):
        from sglang.srt.utils.common import set_prometheus_multiproc_dir

        set_prometheus_multiproc_dir()  # as its launcher does, before anything imports prometheus_client
    result = Run(settings).go()
    result_file.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
