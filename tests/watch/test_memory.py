# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang memory` on a fake server. tests/adapter/test_elastic.py has a real one."""

import json
from typing import Any

import pytest
from fake_metrics import FakeServer, info
from typer.testing import CliRunner, Result

from vt_sglang.cli import app
from vt_sglang.config import MEMORY_LIMIT
from vt_sglang.watch.memory import LimitError, parse_limit

MIB = 2**20
PAGE = 2 * MIB


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["memory", *arguments])


def replica(limit_pages: int = 100, physical_pages: int = 61) -> dict[str, Any]:
    return {
        "page_bytes": PAGE,
        "physical_bytes": physical_pages * PAGE,
        "usage": {"budget_pages": 100, "limit_pages": limit_pages},
        "pages": {"pinned": 10, "evictable": 20},
    }


def test_it_shows_every_replica(server: FakeServer) -> None:
    server.answers = {"/server_info": info(replica(), replica(limit_pages=50))}
    shown = run(server.url)
    assert shown.exit_code == 0
    for size in ("200.00 MiB", "100.00 MiB", "122.00 MiB", "20.00 MiB", "40.00 MiB"):
        assert size in shown.output
    rows = json.loads(run(server.url, "--json").output)
    assert [row["limit_bytes"] for row in rows] == [100 * PAGE, 50 * PAGE]
    assert rows[0] == {
        "budget_bytes": 100 * PAGE,
        "limit_bytes": 100 * PAGE,
        "physical_bytes": 61 * PAGE,
        "pinned_bytes": 10 * PAGE,
        "cached_bytes": 20 * PAGE,
        "page_bytes": PAGE,
    }
    assert server.posted == []


def test_a_limit_is_sent_in_bytes(server: FakeServer) -> None:
    """And the exit status says whether the memory has come back; the page for padding does not count."""
    server.answers = {"/server_info": info(replica(limit_pages=60)), "/set_internal_state": [True]}
    assert run(server.url, "--limit", "60%").exit_code == 0
    assert server.posted == [{"server_args": {MEMORY_LIMIT: 60 * PAGE}}]
    server.answers["/server_info"] = info(replica(limit_pages=60, physical_pages=62))
    late = run(server.url, "--limit", "60%", "--wait", "0.3")
    assert late.exit_code == 1
    assert "above the limit" in late.output


@pytest.mark.parametrize("answer", [[False], [True, False], [], {"error": "x"}, "no JSON", 404, 500])
def test_a_server_that_refuses(server: FakeServer, answer: Any) -> None:
    server.answers = {"/server_info": info(replica()), "/set_internal_state": answer}
    result = run(server.url, "--limit", "100MiB")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert server.url in result.stderr


@pytest.mark.parametrize("found", [info(None), info(), {}, 404, info({"page_bytes": PAGE})])
def test_a_server_that_has_no_such_memory(server: FakeServer, found: Any) -> None:
    server.answers = {"/server_info": found}
    result = run(server.url)
    assert result.exit_code == 1
    assert server.url in result.stderr
    assert "--radix-cache-backend vtensor" in result.stderr or "another version" in result.stderr


def test_a_key_is_sent_and_asked_for(server: FakeServer) -> None:
    server.answers = {"/server_info": info(replica()), "/set_internal_state": [True]}
    assert run(server.url, "--limit", "none", "--api-key", "secret").exit_code == 0
    assert set(server.keys) == {"Bearer secret"}
    server.answers = {"/server_info": 401}
    assert "--api-key" in run(server.url).stderr


@pytest.mark.parametrize(
    ("text", "limit"),
    [("none", 100 * PAGE), ("100%", 100 * PAGE), ("2.5 %", 5 * MIB), ("2MiB", PAGE), ("4194304", 4 * MIB)],
)
def test_limits(text: str, limit: int) -> None:
    assert parse_limit(text, 100 * PAGE, PAGE) == limit


@pytest.mark.parametrize(
    "text", ["", "-1", "0", "half", "0.9%", "101%", "1TiB", "9" * 400, "9" * 5000 + "GiB", "1.5GiB"]
)
def test_limits_that_cannot_be(text: str) -> None:
    with pytest.raises(LimitError, match=r"write whole bytes, for example|has to be 2.00 MiB .a page. to 200.00 MiB"):
        parse_limit(text, 100 * PAGE, PAGE)
