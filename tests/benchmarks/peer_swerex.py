"""Runs in a Python that has SWE-ReX (3.11 or newer): measures its Docker deployment, as told over standard input.

The containers are given that Python by a mount, so that the image needs nothing of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tests.benchmarks.floors import COMMAND
from tests.benchmarks.load import drive

if TYPE_CHECKING:
    from collections.abc import Callable


async def main(image: str, containers: int, label: str) -> None:
    """Start the containers, then measure once for each line that comes, until none does."""
    say = _answers()
    try:
        from swerex import __version__
        from swerex.deployment.docker import DockerDeployment
    except ModuleNotFoundError as error:
        say({"missing": f"not installed: {sys.executable} has no {error.name}"})
        return
    async with AsyncExitStack() as stack:
        runtimes: list[Any] = []
        for _ in range(containers):  # each start blocks the event loop, two would starve each other
            deployment = DockerDeployment(
                image=image, pull="never", docker_args=_arguments(label), startup_timeout=30
            )
            stack.push_async_callback(deployment.stop)
            await deployment.start()
            runtimes.append(deployment.runtime)
        say({"version": __version__})
        commands = _Commands(runtimes)
        ways = {"execute": commands.execute, "session": commands.in_session}
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            way, trajectories = ways[order["way"]], order["trajectories"]
            await asyncio.gather(*(way(number) for number in range(trajectories)))
            load = await drive(way, trajectories, order["seconds"], to_the_end=True)
            say(asdict(load))


class _Commands:
    """Two ways to run a command; trajectories are dealt out to the containers."""

    def __init__(self, runtimes: list[Any]) -> None:
        self._runtimes = runtimes
        self._sessions: set[int] = set()

    async def execute(self, trajectory: int) -> None:
        """In a fresh shell."""
        from swerex.runtime.abstract import Command

        command = Command(command=["bash", "-c", COMMAND], check=True)
        await self._runtime(trajectory).execute(command)

    async def in_session(self, trajectory: int) -> None:
        """In the trajectory's own shell, which the first of its calls starts."""
        from swerex.runtime.abstract import (
            BashAction,
            CreateBashSessionRequest,
        )

        runtime, name = self._runtime(trajectory), f"t{trajectory}"
        if trajectory not in self._sessions:
            self._sessions.add(trajectory)
            await runtime.create_session(CreateBashSessionRequest(session=name))
        await runtime.run_in_session(BashAction(command=COMMAND, session=name))

    def _runtime(self, trajectory: int) -> Any:
        return self._runtimes[trajectory % len(self._runtimes)]


def _arguments(label: str) -> list[str]:
    folders = sorted({sys.prefix, sys.base_prefix})
    mounts = [part for folder in folders for part in ("-v", f"{folder}:{folder}:ro")]
    return [*mounts, "-e", f"PATH={sys.prefix}/bin:/usr/bin:/bin", "--label", label]


def _answers() -> Callable[[dict[str, Any]], None]:
    """A way to answer. What else is printed goes to standard error: SWE-ReX prints."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
