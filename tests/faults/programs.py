"""Programs of the project as child processes of a test, which is sure to outlive them."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.footprint import Footprint
from tests.waiting import WITHIN_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
SOURCES = (".", "backends", "tools", "environments")


class Program:
    """A running program with everything it starts."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.footprint = Footprint(process.pid)

    async def ended(self, *, within_s: float = WITHIN_S) -> int:
        """Its exit status; raises `TimeoutError` when it goes on."""
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    async def says(self, line: str, *, within_s: float = 120.0) -> None:
        """Return when it has printed this as its next line. Needs its output in a pipe."""
        stdout = self.process.stdout
        assert stdout is not None
        async with asyncio.timeout(within_s):
            assert await stdout.readline() == f"{line}\n".encode()


@asynccontextmanager
async def program(
    *arguments: str, cwd: Path = ROOT, output: Path | None = None
) -> AsyncIterator[Program]:
    """`python ARGUMENTS`, with our packages in reach, its output in a pipe or in a file. Whatever is left at the end is
    killed.
    """
    paths = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    stream = output.open("wb") if output is not None else None
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stream or asyncio.subprocess.PIPE,
            stderr=stream,
        )
    finally:
        if stream is not None:
            stream.close()
    running = Program(process)
    try:
        yield running
    finally:
        running.footprint.look()
        if process.returncode is None:
            process.kill()
        await process.wait()
        if process.stdout is not None:
            await process.stdout.read()
        for left in running.footprint.left()[0]:
            left.kill()
