# SPDX-License-Identifier: Apache-2.0
"""Answers /metrics and /server_info as an SGLang server does, with the figures that a test sets."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LABELS = 'engine_type="unified",model_name="toy",moe_ep_rank="0",pp_rank="0",tp_rank="0"'


def metrics(**figures: float) -> str:
    """Rows of a scheduler's metrics. `name__label__value=` stands for a label."""
    rows = []
    for key, value in figures.items():
        name, *label = key.split("__")
        more = f',{label[0]}="{label[1]}"' if label else ""
        rows.append(f"sglang:{name}{{{LABELS}{more}}} {value}")
    return "\n".join(rows) + "\n"


def vtensor_metrics(prompts: float = 1000, adopted: float = 100, aliased: float = 50, copied: float = 5) -> str:
    """A server on virtual tensors with a budget of 100 pages of 1 MiB."""
    return metrics(
        num_running_reqs=3,
        num_queue_reqs=2,
        realtime_tokens_total__mode__decode=prompts / 2,
        realtime_tokens_total__mode__prefill_compute=7,
        token_usage=0.5,
        vtensor_prompt_tokens_total=prompts,
        vtensor_cached_tokens_total__source__adopted=adopted,
        vtensor_cached_tokens_total__source__aliased=aliased,
        vtensor_cached_tokens_total__source__copied=copied,
        vtensor_kv_reused_bytes_total__source__adopted=adopted * 10,
        vtensor_kv_reused_bytes_total__source__aliased=aliased * 10,
        vtensor_kv_reused_bytes_total__source__copied=copied * 10,
        vtensor_kv_read_bytes_total__phase__prefill=1,
        vtensor_kv_read_bytes_total__phase__decode=2,
        vtensor_requests_bound_total=prompts / 100,
        vtensor_evicted_tokens_total=30,
        vtensor_evicted_nodes_total=4,
        vtensor_driver_calls_total=prompts,
        vtensor_driver_seconds_total=prompts / 1e4,
        vtensor_pages__state__pinned=10,
        vtensor_pages__state__evictable=20,
        vtensor_pages__state__free=30,
        vtensor_pages__state__not_created=39,
        vtensor_pages__state__withheld=1,
        vtensor_budget_pages=100,
        vtensor_page_bytes=2**20,
        vtensor_physical_bytes=61 * 2**20,
        vtensor_tree_tokens=777,
    )


STOCK_METRICS = metrics(
    num_running_reqs=1,
    num_queue_reqs=0,
    token_usage=0.25,
    realtime_tokens_total__mode__prefill_compute=60,
    realtime_tokens_total__mode__prefill_cache=40,
    realtime_tokens_total__mode__decode=500,
    evicted_tokens_total=9,
)

BUSIEST = [
    {"namespace": None, "start": 0, "end": 500, "hits": 2, "first_ids": [1, 2, 3]},
    {"namespace": "ab12cd34", "start": 0, "end": 512, "hits": 8, "first_ids": [9, 8, 7]},
]


def vtensor_info() -> dict[str, Any]:
    """/server_info of a server on virtual tensors."""
    counters = {"binds": 10, "tokens_matched": 155, "tokens_adopted": 100, "tokens_aliased": 50, "tokens_copied": 5}
    counters |= {"driver_calls": 77, "driver_ns": 5_000_000, "tokens_evicted": 30, "nodes_evicted": 4}
    return info(
        {
            "page_bytes": 2**20,
            "token_bytes": 10,
            "physical_bytes": 61 * 2**20,
            "counters": counters,
            "usage": {"budget_pages": 100, "live_slots": 3, "tree_tokens": 777},
            "tally": {"prompt_tokens": 1000, "prefill_read_tokens": 5, "decode_read_tokens": 6},
            "pages": {"free": 30, "pinned": 10, "evictable": 20, "withheld": 1, "not_created": 39},
            "busiest": BUSIEST,
        }
    )


def info(*vtensor: dict[str, Any] | None) -> dict[str, Any]:
    """/server_info of a server with so many replicas."""
    states = [{"last_gen_throughput": 12.5} | ({} if it is None else {"vtensor": it}) for it in vtensor]
    return {"served_model_name": "models/toy", "version": "0.5.17", "internal_states": states}


class FakeServer:
    """What a path answers: text, an object for JSON, a status, or nothing, which is 404. What is posted is kept."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.keys: list[str | None] = []
        self.posted: list[Any] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.asked.append(self.path)
                fake.keys.append(self.headers.get("Authorization"))
                answer = fake.answers.get(self.path, 404)
                status = answer if isinstance(answer, int) else 200
                body = answer if isinstance(answer, str) else json.dumps(answer)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body.encode())

            def do_POST(self) -> None:
                fake.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Go away: from now on the port refuses."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
