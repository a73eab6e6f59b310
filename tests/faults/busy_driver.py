"""A driver with every slot of its backends busy, to be killed: `python -m tests.faults.busy_driver BACKEND...`, each
the settings of a backend as JSON. Prints `busy` then.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Any

from agentenv_backends.config import parse_backend_config
from agentenv_tools import ToolCall, ToolExecutor
from agentenv_tools.toolsets import build_registry

_COMMAND = "trap '' TERM HUP INT; setsid sleep 600 & (trap '' TERM; sleep 600) & sleep 600"


async def main(backends: list[dict[str, Any]]) -> None:
    async with AsyncExitStack() as stack:
        calls = [
            (executor, f"t{number}")
            for executor, slots in [await _started(settings, stack) for settings in backends]
            for number in range(slots)
        ]
        await asyncio.gather(*(_call(executor, name, "true") for executor, name in calls))
        async with asyncio.TaskGroup() as group:
            for executor, name in calls:
                group.create_task(_call(executor, name, _COMMAND))
            group.create_task(_say("busy"))


async def _started(settings: dict[str, Any], stack: AsyncExitStack) -> tuple[ToolExecutor, int]:
    """An executor over a backend, and how many slots that has."""
    config = parse_backend_config({"acquire_timeout_s": 120} | settings)
    backend = config.build()
    await stack.enter_async_context(backend)
    return ToolExecutor(backend, build_registry()), config.slots * config.max_hosts


async def _call(executor: ToolExecutor, trajectory: str, command: str) -> None:
    arguments = {"command": command, "timeout": 600}
    await executor.execute(trajectory, ToolCall("terminal", arguments))


async def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main([json.loads(argument) for argument in sys.argv[1:]]))
