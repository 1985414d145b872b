# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from vt_sglang.chat import server as server_module
from vt_sglang.chat.launch import Launch
from vt_sglang.chat.server import Server, ServerError

Fake = Callable[..., Launch]
Alive = Callable[[int], bool]


def start(launch: Launch, folder: Path, timeout_s: float = 30.0) -> dict[str, object]:
    """Start a server, look at it, stop it."""

    async def main() -> dict[str, object]:
        async with Server(launch, folder / "server.log", timeout_s) as server:
            seen = {"status": server.exit_status(), "healthy": await server.healthy(), "info": await server.info()}
        return seen | {"start_s": server.start_s, "stopped": server.exit_status()}

    return asyncio.run(main())


def test_start_and_stop(fake: Fake, tmp_path: Path) -> None:
    seen = start(fake("a", "--say", "hello"), tmp_path)
    assert (seen["status"], seen["healthy"]) == (None, True)
    assert seen["info"] == {"max_total_num_tokens": 4096, "internal_states": [{}]}
    assert isinstance(seen["start_s"], float)
    assert seen["start_s"] > 0
    assert seen["stopped"] is not None
    assert (tmp_path / "server.log").read_text() == "hello\n"


@pytest.mark.parametrize(("option", "flushed"), [((), True), (("--never-flush",), False)])
def test_flush_the_cache(fake: Fake, tmp_path: Path, option: tuple[str, ...], flushed: bool) -> None:
    async def main() -> bool:
        async with Server(fake("a", *option), tmp_path / "log", 30) as server:
            return await server.flush_cache()

    assert asyncio.run(main()) is flushed


def test_processes_are_those_of_the_server_and_its_children(fake: Fake, tmp_path: Path) -> None:
    child = tmp_path / "child"

    async def main() -> tuple[list[int], list[int]]:
        async with Server(fake("a", "--child", str(child)), tmp_path / "log", 30) as server:
            processes = server.processes()
            assert server._process.pid in processes
        return processes, server.processes()

    running, ended = asyncio.run(main())
    assert int(child.read_text()) in running
    assert ended == []


def test_environment_is_added(tmp_path: Path) -> None:
    launch = Launch("a", ["/bin/sh", "-c", "echo $ADDED and $HOME; exit 1"], {"ADDED": "something"})
    with pytest.raises(ServerError, match=f"something and {os.environ['HOME']}"):
        start(launch, tmp_path)


def test_a_server_that_ends_shows_the_end_of_its_log(fake: Fake, tmp_path: Path) -> None:
    lines = "\n".join(f"line {number}." for number in range(100))
    with pytest.raises(ServerError) as caught:
        start(fake("some", "--say", lines, "--exit", "3"), tmp_path)
    said = str(caught.value)
    assert said.startswith(f"the some server ended with status 3 before it was ready. The end of {tmp_path}")
    assert "line 99." in said
    assert "line 70." in said
    assert "line 69." not in said


def test_a_server_that_takes_too_long_is_stopped(fake: Fake, alive: Alive, tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(ServerError, match="was not ready within 3 s"):
        start(fake("a", "--never-ready", "--child", str(child)), tmp_path, timeout_s=3)
    assert not alive(int(child.read_text()))


def test_children_are_stopped_too(fake: Fake, alive: Alive, tmp_path: Path) -> None:
    child = tmp_path / "child"
    start(fake("a", "--child", str(child)), tmp_path)
    assert not alive(int(child.read_text()))


def test_a_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    monkeypatch.setattr(server_module, "TERMINATE_S", 0.3)

    async def main() -> int | None:
        async with Server(fake("a"), tmp_path / "log", 30) as server:
            os.kill(server._process.pid, signal.SIGSTOP)  # a stopped process does not see SIGTERM
        return server.exit_status()

    assert asyncio.run(main()) == -signal.SIGKILL


def test_children_of_a_server_that_died_are_stopped(fake: Fake, alive: Alive, tmp_path: Path) -> None:
    child = tmp_path / "child"

    async def main() -> tuple[int | None, bool, object]:
        async with Server(fake("a", "--child", str(child)), tmp_path / "log", 30) as server:
            os.kill(server._process.pid, signal.SIGKILL)
            await asyncio.sleep(0.2)
            return server.exit_status(), await server.healthy(), await server.info()

    assert asyncio.run(main()) == (-signal.SIGKILL, False, None)
    assert not alive(int(child.read_text()))


def test_an_interruption_stops_the_server(fake: Fake, alive: Alive, tmp_path: Path) -> None:
    child = tmp_path / "child"

    async def main() -> None:
        async with Server(fake("a", "--child", str(child)), tmp_path / "log", 30):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert not alive(int(child.read_text()))
