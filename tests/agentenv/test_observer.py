"""A rollout tells its observers what happens, whatever they do, and can be withdrawn by them."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from agentenv.harness import ToolLoop
from agentenv.observer import RolloutObserver
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutLimits, RolloutRecord, rollout
from agentenv.task import Task
from agentenv.types import AgentConfig
from agentenv_tools.schema import ToolResult
from tests.agentenv.rollout_fakes import (
    FunctionVerifier,
    FunctionWorkbench,
    ScriptedSession,
    answer,
    calls,
)


class Noting(RolloutObserver):
    """Notes the events; `cancel` is what it was given."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.cancel: Callable[[], None] = lambda: None

    def started(self, trajectory_id: str, task: Task, cancel: Callable[[], None]) -> None:
        self.events.append(("started", task.instruction))
        self.cancel = cancel

    def reply(self, trajectory_id, reply):
        self.events.append(("reply", reply.content))

    def tool_started(self, trajectory_id, call):
        self.events.append(("tool_started", call.name))

    def tool_finished(self, trajectory_id, call, result):
        self.events.append(("tool_finished", result.output))

    def verifying(self, trajectory_id):
        self.events.append(("verifying", trajectory_id))

    def verified(self, trajectory_id, verdict):
        self.events.append(("verified", verdict.reward))

    def ended(self, trajectory_id, record):
        self.events.append(("ended", record.outcome))


class Failing(RolloutObserver):
    """Fails at every event that it is told of."""

    def __init__(self) -> None:
        self.told = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("started", "reply", "tool_started", "ended"):
            self.told += 1
            raise RuntimeError("broken")
        return super().__getattribute__(name)


async def never(*args: Any) -> Any:
    await asyncio.Event().wait()


async def run(
    *observers: RolloutObserver,
    session: ScriptedSession | None = None,
    workbench: FunctionWorkbench | None = None,
    verifier: FunctionVerifier | None = None,
) -> RolloutRecord:
    return await rollout(
        Task("do it", None, AgentConfig()),
        harness=ToolLoop(turn_timeout_s=60),
        session=session or ScriptedSession(calls("bash"), answer("done")),
        workbench=workbench or FunctionWorkbench(),
        verifier=verifier or FunctionVerifier(),
        limits=RolloutLimits(rollout_timeout_s=600, verify_timeout_s=600),
        trajectory_id="t",
        observers=observers,
    )


async def test_everything_is_told_in_order():
    noting = Noting()
    record = await run(noting)
    assert record.outcome is Outcome.SCORED
    assert noting.events == [
        ("started", "do it"),
        ("reply", ""),
        ("tool_started", "bash"),
        ("tool_finished", "ok"),
        ("reply", "done"),
        ("verifying", "t"),
        ("verified", 1.0),
        ("ended", Outcome.SCORED),
    ]


async def test_an_observer_that_fails_costs_a_line_in_the_log(caplog):
    failing, noting = Failing(), Noting()
    with caplog.at_level(logging.ERROR):
        record = await run(failing, noting)
    assert record.reward == 1.0
    assert len(noting.events) == 8
    assert failing.told == 1
    assert [each.getMessage() for each in caplog.records] == ["Failing failed in started"]


@pytest.mark.parametrize("where", ["policy", "tool", "verifier"])
async def test_a_withdrawn_rollout_ends_cancelled_and_the_task_around_it_goes_on(where: str):
    noting, log = Noting(), FunctionWorkbench()

    async def withdrawn(*args: Any) -> Any:
        noting.cancel()
        noting.cancel()
        await never()

    async def respond(call: Any) -> ToolResult:
        return await withdrawn() if where == "tool" else ToolResult(True, "ok")

    log.respond = respond
    session = ScriptedSession(withdrawn if where == "policy" else calls("bash"), answer("done"))
    verifier = FunctionVerifier(withdrawn if where == "verifier" else 1.0)
    record = await run(noting, session=session, workbench=log, verifier=verifier)
    assert (record.outcome, record.stop_reason) == (Outcome.CANCELLED, StopReason.CANCELLED)
    assert record.reward is None
    assert record.unfinished == tuple(session.messages) != ()
    assert log.log[-1] == "release"
    assert noting.events[-1] == ("ended", Outcome.CANCELLED)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    noting.cancel()
    await asyncio.sleep(0)


async def test_whoever_cancels_the_task_still_gets_the_cancellation():
    noting = Noting()

    async def both() -> Any:
        noting.cancel()
        running.cancel()
        await never()

    running = asyncio.ensure_future(run(noting, session=ScriptedSession(both)))
    with pytest.raises(asyncio.CancelledError):
        await running
    assert noting.events[-1] == ("ended", Outcome.CANCELLED)


async def test_a_withdrawal_that_comes_too_late_changes_nothing():
    noting = Noting()

    class Late(FunctionWorkbench):
        async def release(self) -> None:
            noting.cancel()
            await asyncio.sleep(0.01)
            await super().release()

    record = await run(noting, workbench=Late())
    assert record.outcome is Outcome.SCORED
