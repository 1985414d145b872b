# SPDX-License-Identifier: Apache-2.0
"""Keep a report of `vt-sglang chat` as a result: all but the single requests, and without this machine's paths.

python bench/keep_chat.py report/chat.json bench/results/chat.json
"""

import argparse
import json
from pathlib import Path, PurePath
from typing import Any


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """What of a report says what was run, where, and what came of it."""
    words = report["command_line"].split(" ")
    report["command_line"] = " ".join(PurePath(it).name if it.startswith("/") else it for it in words)
    for place in (report["workload"], report["workload"].get("load", {})):
        for name in ("model_path", "dialogues", "report", "arrivals"):
            if isinstance(place.get(name), str):
                place[name] = PurePath(place[name]).name
    if report["comparison"] is None:
        raise SystemExit("bench/keep_chat.py: the report of one server alone compares nothing")
    outputs = {tuple(request["output_ids"]) for request in report["servers"][0]["requests"]}
    report["comparison"]["distinct"] = len(outputs)
    for server in report["servers"]:
        server["command"] = [PurePath(it).name if "/" in it else it for it in server["command"]]
        for run in (server, *server.get("runs", [])):
            del run["requests"]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    arguments.result.write_text(json.dumps(kept(json.loads(arguments.report.read_text())), indent=1) + "\n")


if __name__ == "__main__":
    main()
