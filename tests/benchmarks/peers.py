"""Sandboxes of other projects, measured where they are installed: in a Python of their own, so that what they need
does not mix with what we need. `AGENTENV_BENCH_PEERS` names that Python.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import tempfile
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, Any

import aiodocker

from tests.benchmarks.figures import Load
from tests.benchmarks.machine import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PEERS = "AGENTENV_BENCH_PEERS"
_START_WITHIN_S, _ANSWER_WITHIN_S, _END_WITHIN_S = 60.0, 60.0, 30.0
_LABEL = "agentenv-benchmark-peer"


class PeerUnavailableError(Exception):
    """The peer cannot be measured here. The message says why."""


@asynccontextmanager
async def swe_rex(image: str, containers: int) -> AsyncIterator[SweRex]:
    """Containers of SWE-ReX's Docker deployment; they are gone at the end. Raises `PeerUnavailableError`."""
    python = os.environ.get(PEERS)
    if not python:
        raise PeerUnavailableError(f"not installed: {PEERS} names no Python that has it")
    label = f"{_LABEL}={secrets.token_hex(4)}"
    with tempfile.TemporaryFile() as errors:
        try:
            process = await asyncio.create_subprocess_exec(
                *(python, "-m", "tests.benchmarks.peer_swerex", image, str(containers), label),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        except OSError as error:
            raise PeerUnavailableError(f"{PEERS}={python}: {error}") from error
        try:
            peer = SweRex(process, errors)
            await peer.start()
            yield peer
        finally:
            await _end(process, label)


class SweRex:
    """Driven by `peer_swerex`, a process of the other Python, whose event loop has nothing else to do."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self.version = ""

    async def start(self) -> None:
        """Return when the containers run."""
        self.version = str((await self._answer(_START_WITHIN_S))["version"])

    async def measure(self, way: str, trajectories: int, seconds: float) -> Load:
        """Keep as many trajectories busy with fresh shells (`execute`) or in shells that live (`session`)."""
        assert self._process.stdin is not None
        order = {"way": way, "trajectories": trajectories, "seconds": seconds}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return Load(**await self._answer(_ANSWER_WITHIN_S + seconds))

    async def _answer(self, within_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            message = f"no answer within {within_s:g} s: {self._last_words()}"
            raise PeerUnavailableError(message) from error
        if not line:
            raise PeerUnavailableError(f"it ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if reason := answer.get("missing"):
            raise PeerUnavailableError(reason)
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


async def _end(process: asyncio.subprocess.Process, label: str) -> None:
    """Have it end its containers; if it does not, do so here."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_END_WITHIN_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    if process.returncode != 0:
        await _remove_containers(label)


async def _remove_containers(label: str) -> None:
    async with aiodocker.Docker() as docker:
        filters = json.dumps({"label": [label]})
        for container in await docker.containers.list(all=True, filters=filters):
            await container.delete(force=True)
