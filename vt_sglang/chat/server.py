# SPDX-License-Identifier: Apache-2.0
"""A server as a child process: started, waited for, asked, and stopped with all of its own children."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from vt_sglang.chat.endpoint import Endpoint, ServerError
from vt_sglang.chat.launch import Launch

__all__ = ["Server", "ServerError"]

HOST = "127.0.0.1"
POLL_S = 0.1
# On SIGTERM, SGLang looks every five seconds whether anything is left to do.
TERMINATE_S = 15.0
KILL_S = 15.0
# When a part of SGLang fails, it takes some five seconds until all of it has ended.
END_S = 10.0
TAIL_LINES = 30


class Server(Endpoint):
    """An asynchronous context manager: inside it, the server is ready for requests."""

    def __init__(self, launch: Launch, log: Path, timeout_s: float) -> None:
        """log: file for all that it prints. timeout_s: seconds that it may take to start."""
        self._port = _free_port()
        super().__init__(launch, f"http://{HOST}:{self._port}")
        self.log = log
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        start = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self.launch.command, "--host", HOST, "--port", str(self._port)],
                env=os.environ | self.launch.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, so that none of its children need outlive it
            )
        try:
            await self._until_ready()
        except BaseException:
            await self._stop()
            raise
        self.start_s = time.perf_counter() - start
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def exit_status(self) -> int | None:
        """None while the server runs."""
        return self._process.poll()

    async def end(self) -> int | None:
        """The exit status of a server that answers no more; None if it goes on running all the same."""
        await _until(lambda: self.exit_status() is not None, END_S)
        return self.exit_status()

    def processes(self) -> list[int]:
        """Ids of the server's processes."""
        return _members(self._process.pid)

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not await self.healthy():
            if (status := self.exit_status()) is not None:
                raise self._not_started(f"ended with status {status} before it was ready")
            if time.monotonic() > deadline:
                raise self._not_started(f"was not ready within {self._timeout_s:g} s")
            await asyncio.sleep(POLL_S)

    def _not_started(self, what: str) -> ServerError:
        tail = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return ServerError(f"the {self.launch.name} server {what}. The end of {self.log}:\n" + "\n".join(tail))

    async def _stop(self) -> None:
        """End the process, then whatever is left of its group, and wait until both are gone."""
        group = self._process.pid
        try:
            self._process.terminate()
            await _until(lambda: self.exit_status() is not None, TERMINATE_S)
        finally:  # also when the wait was interrupted
            if _members(group):
                os.killpg(group, signal.SIGKILL)
        # Processes that are being torn down may still hold the GPU memory that the next server needs.
        await _until(lambda: self.exit_status() is not None and not _members(group), KILL_S)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until the condition holds, but no longer than so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)


def _members(group: int) -> list[int]:
    """Processes of a group that are not dead; a zombie is, though it keeps its entry until someone asks for it."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:  # it ended meanwhile
                continue
            if int(its_group) == group and state not in "ZX":
                members.append(int(entry.name))
    return members


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
