"""A driver with every slot busy, to be killed: `python -m tests.faults.busy_driver SLOTS`. Prints `busy` then."""

from __future__ import annotations

import asyncio
import sys

from agentenv_backends.config import LocalConfig
from agentenv_tools import ToolCall, ToolExecutor
from agentenv_tools.toolsets import build_registry

_COMMAND = "trap '' TERM HUP INT; setsid sleep 600 & (trap '' TERM; sleep 600) & sleep 600"


async def main(slots: int) -> None:
    backend = LocalConfig(slots=slots, acquire_timeout_s=120).build()
    await backend.start()
    executor = ToolExecutor(backend, build_registry())

    async def call(number: int, command: str) -> None:
        arguments = {"command": command, "timeout": 600}
        await executor.execute(f"t{number}", ToolCall("terminal", arguments))

    await asyncio.gather(*(call(number, "true") for number in range(slots)))
    async with asyncio.TaskGroup() as group:
        for number in range(slots):
            group.create_task(call(number, _COMMAND))
        group.create_task(_say("busy"))


async def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
