# SPDX-License-Identifier: Apache-2.0
"""Runs of a real scheduler, each in a process of its own, and the arguments that they have in common."""

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SERVER_ARGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "skip_tokenizer_init": True,
    "context_length": 1024,
    "max_running_requests": 8,
    "chunked_prefill_size": 64,
    "random_seed": 1,
}

STOCK = {"attention_backend": "torch_native", "disable_cuda_graph": True}
VTENSOR = {"radix_cache_backend": "vtensor"}


HERE = Path(__file__).parent
READ_ON_IMPORT = {"SGLANG_TEST_RETRACT"}
"""Variables that SGLang reads when it is imported: a run for which they are set imports it itself."""


class Forks:
    """A process that has imported SGLang for a CPU, and forks for each run (scheduler_forks.py)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "scheduler_forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.kill)

    def kill(self) -> None:
        """End it, and the run that it waits for."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def run(self, folder: Path, settings: Path, result: Path, log: Path, timeout_s: float) -> int:
        """Exit status of a run (scheduler_run.main) in this folder, negative if a signal ended it. TimeoutError, and
        the end of all, if it takes too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(map(str, (folder, settings, result, log)))) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not ready:
            self.kill()
            raise TimeoutError(f"the scheduler did not end in {timeout_s} s")
        answer = self._process.stdout.readline()
        assert answer, "SGLang cannot be imported, or not be forked: run tests/adapter/scheduler_forks.py by hand"
        return int(answer)


forks = functools.cache(Forks)
"""The one of this process."""


def run_scheduler(folder: Path, settings: dict[str, Any], timeout_s: float = 600) -> dict[str, Any]:
    """One run of scheduler_run.py in a process of its own; its result. AssertionError, with its log, if it failed."""
    settings_file, result_file, log = (folder / name for name in ("settings.json", "result.json", "scheduler.log"))
    settings_file.write_text(json.dumps(settings))
    if settings["server_args"]["device"] == "cpu" and not READ_ON_IMPORT & set(settings.get("environment", {})):
        status = forks().run(folder, settings_file, result_file, log, timeout_s)
    else:
        command = [sys.executable, str(HERE / "scheduler_run.py"), str(settings_file), str(result_file)]
        with open(log, "w") as output:
            status = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=timeout_s, cwd=folder, check=False
            ).returncode
    assert status == 0, f"the scheduler failed with status {status}:\n{log.read_text(errors='replace')[-10000:]}"
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result
