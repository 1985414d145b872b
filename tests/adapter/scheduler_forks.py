# SPDX-License-Identifier: Apache-2.0
"""A process that has imported SGLang, and forks for every run of scheduler_run.py: the import takes longer than most
runs do.

    python scheduler_forks.py

Each line that it reads is a JSON list, [folder, settings file, result file, log file]; for each it writes one line, the
status with which the run ended. It ends with its input.
"""

import importlib
import json
import os
import sys
import threading
from pathlib import Path

import scheduler_run

# What a run imports. Not what reads the environment that a run may set: SGLang's metrics.
IMPORTS = ("sglang.srt.managers.scheduler", "sglang.srt.models.registry", "vt_sglang.adapter.tree_cache")


def _run(folder: str, settings: str, result: str, log: str) -> None:
    """In the child."""
    os.chdir(folder)
    with open(log, "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    scheduler_run.main(Path(settings), Path(result))


def main() -> None:
    scheduler_run.prepare_environment(on_cpu=True)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed on the way is no answer
    for name in IMPORTS:
        importlib.import_module(name)
    if threading.active_count() > 1 or "prometheus_client" in sys.modules:
        sys.exit("SGLang's import started a thread, or read what only a run sets: it cannot be forked")
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            answers.close()
            return _run(*json.loads(line))
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
    return None


if __name__ == "__main__":
    main()
