"""The rival of Docker slots: `docker exec` for each command, through the engine's interface or the command line."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiodocker

from tests.benchmarks.floors import COMMAND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aiodocker.containers import DockerContainer

PROGRAM = (COMMAND,)
SHELL = ("bash", "-c", COMMAND)


class ExecContainer:
    """A container that does nothing, and two ways to run a command in it."""

    def __init__(self, container: DockerContainer) -> None:
        self._container = container

    async def by_interface(self, _trajectory: int, command: Sequence[str] = SHELL) -> None:
        """Make it, start it, read to the end of its output, ask for its exit code: what any client has to do."""
        execution = await self._container.exec(command)
        async with execution.start(detach=False) as output:
            while await output.read_out() is not None:
                pass
        code = (await execution.inspect())["ExitCode"]
        if code != 0:
            raise RuntimeError(f"docker exec, by the engine's interface: exit code {code}")

    async def by_command_line(self, _trajectory: int) -> None:
        """The `docker` command, with a shell."""
        process = await asyncio.create_subprocess_exec(
            *("docker", "exec", self._container.id, *SHELL),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"docker exec: {errors.decode(errors='replace')[-300:]}")


@asynccontextmanager
async def exec_container(image: str) -> AsyncIterator[ExecContainer]:
    """Start the container; it is gone at the end."""
    async with aiodocker.Docker() as docker:
        container = await docker.containers.create(
            {
                "Image": image,
                "Cmd": ["sleep", "infinity"],
                "HostConfig": {"Init": True, "NetworkMode": "none"},
            }
        )
        try:
            await container.start()
            yield ExecContainer(container)
        finally:
            await container.delete(force=True)
