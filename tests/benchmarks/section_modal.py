"""A fresh shell in sandboxes of Modal: slots that live, beside one `Sandbox.exec` for each command, through the same
client and the same emulated server. Of the real service these figures say nothing but how many calls it is spared.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from agentenv_backends.config import ModalConfig
from tests.benchmarks.figures import Effort, Goal, Row, Section
from tests.benchmarks.floors import COMMAND
from tests.benchmarks.load import drive, in_turns
from tests.benchmarks.local import running
from tests.emulators.modal.running import EmulatedModal
from tests.modal_service import MODAL, why_no_emulated_modal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.benchmarks.figures import Load

_MOST = 64
_TIMES_EXEC = 5.0
_CALLS_PER_S = 16
"""A slow machine's: long enough is measured for each trajectory to have its turn."""
_OURS, _EXEC = "executor, slots of one sandbox", "Sandbox.exec for each command"


async def run(effort: Effort) -> Section:
    """`bash -c true` at rising numbers of trajectories. Calls per second count all calls, to the end of the last."""
    title = "Fresh-shell calls in emulated Modal sandboxes: `bash -c true`"
    if reason := why_no_emulated_modal():
        return Section("modal", title, (Row(_OURS, {}, f"not measured: {reason}"),))
    rows: list[Row] = []
    goals: list[Goal] = []
    with EmulatedModal() as server, _variables(server):
        for count in (count for count in effort.trajectories if count <= _MOST):
            loads, calls = await _at(count, effort, server)
            rows += [
                Row(
                    f"{count}: {name}",
                    {
                        **load.figures(),
                        "RPCs/call": calls[name],
                        "of Sandbox.exec": load.rate / loads[_EXEC].rate,
                    },
                )
                for name, load in loads.items()
            ]
            if count == _MOST:
                times = loads[_OURS].rate / loads[_EXEC].rate
                goals.append(
                    Goal(f"times Sandbox.exec at {count}", times, _TIMES_EXEC, at_least=True)
                )
    return Section("modal", title, tuple(rows), tuple(goals))


async def _at(
    count: int, effort: Effort, server: EmulatedModal
) -> tuple[dict[str, Load], dict[str, float]]:
    """Both at so many trajectories, and how many calls of the server each of their calls took."""
    asked: dict[str, int] = {}

    async def counted(name: str, call: Any, seconds: float) -> Load:
        before = sum(server.calls().values())
        load = await drive(call, count, seconds, to_the_end=True)
        asked[name] = asked.get(name, 0) + sum(server.calls().values()) - before
        return load

    async with AsyncExitStack() as stack:
        config = ModalConfig.model_validate({**MODAL, "slots": count, "max_hosts": 1})
        slots = await stack.enter_async_context(running(config))
        await slots.warm_up(count)
        sandbox = await stack.enter_async_context(_plain_sandbox())
        ours, theirs = partial(slots.shell, command="true"), partial(_exec, sandbox)
        exec_s = max(effort.seconds, count / _CALLS_PER_S)
        measurements = {
            _OURS: partial(counted, _OURS, ours, effort.seconds),
            _EXEC: partial(counted, _EXEC, theirs, exec_s),
        }
        loads = await in_turns(min(3, effort.rounds), measurements)
    return loads, {name: asked[name] / load.calls for name, load in loads.items()}


async def _exec(sandbox: Any, _trajectory: int) -> None:
    """Start it, read to the end of its output, ask for its exit code."""
    process: Any = await sandbox.exec.aio("bash", "-c", COMMAND, text=False)
    await process.stdout.read.aio()
    await process.stderr.read.aio()
    if await process.wait.aio() != 0:
        raise RuntimeError("Sandbox.exec: the command failed")


@asynccontextmanager
async def _plain_sandbox() -> AsyncIterator[Any]:
    import modal

    token = os.environ["MODAL_TOKEN_ID"], os.environ["MODAL_TOKEN_SECRET"]
    sign_in: Any = modal.Client.from_credentials
    client: Any = await sign_in.aio(*token)
    app = await modal.App.lookup.aio("benchmark", client=client, create_if_missing=True)
    image = modal.Image.from_registry("python:3.12-slim")
    sandbox: Any = await modal.Sandbox.create.aio(
        app=app, image=image, client=client, timeout=3600, block_network=True
    )
    try:
        yield sandbox
    finally:
        await sandbox.terminate.aio()
        await sandbox.detach.aio()
        await client.close.aio()


@contextmanager
def _variables(server: EmulatedModal) -> Iterator[None]:
    """Modal's client finds the server."""
    before = dict(os.environ)
    os.environ.update(server.environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
