"""One rollout ends in exactly one outcome, and lets go of its slot whatever happens."""

import asyncio
from typing import Any

import numpy as np
import pytest

from agentenv.errors import ContextLengthError, PolicyError, PolicyTimeoutError
from agentenv.harness import ToolLoop
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutLimits, RolloutRecord, finish, rollout
from agentenv.task import Task, Verdict
from agentenv.types import AgentConfig
from agentenv_backends.base import Snapshot
from agentenv_backends.errors import (
    AcquireTimeoutError,
    HostLostError,
    SlotExhaustedError,
    SlotLostError,
)
from agentenv_tools.schema import ToolCall, ToolResult
from tests.agentenv.rollout_fakes import (
    FunctionVerifier,
    FunctionWorkbench,
    ScriptedSession,
    answer,
    calls,
)

LIMITS = RolloutLimits(rollout_timeout_s=60, verify_timeout_s=5)


async def run(
    session: ScriptedSession,
    *,
    workbench: FunctionWorkbench | None = None,
    verifier: Any = None,
    limits: RolloutLimits = LIMITS,
    workspace: Any = None,
    turn_timeout_s: float = 5,
    **agent: Any,
) -> RolloutRecord:
    return await rollout(
        Task(instruction="do it", item=None, agent=AgentConfig(**agent)),
        harness=ToolLoop(turn_timeout_s=turn_timeout_s),
        session=session,
        workbench=workbench or FunctionWorkbench(),
        verifier=verifier or FunctionVerifier(),
        limits=limits,
        trajectory_id="t",
        workspace=workspace,
    )


async def never() -> Any:
    await asyncio.Event().wait()


async def test_an_answer_is_scored_with_the_agents_processes_dead_and_the_slot_released_last():
    bench = FunctionWorkbench()
    verifier = FunctionVerifier(0.75, use_tool=True)
    record = await run(
        ScriptedSession(calls("terminal"), answer("done")), workbench=bench, verifier=verifier
    )
    assert (record.outcome, record.reward) == (Outcome.SCORED, 0.75)
    assert record.stop_reason is StopReason.FINAL_ANSWER
    assert record.result is not None
    assert record.result.final_response == "done"
    assert bench.log == ["call terminal", "quiesce", "call verify", "release"]
    assert verifier.seen_meta == {"prepared": True}


@pytest.mark.parametrize(
    ("session", "agent", "stop"),
    [
        (ScriptedSession(*[calls("terminal")] * 3), {"max_steps": 2}, StopReason.MAX_STEPS),
        (ScriptedSession(calls("terminal"), ContextLengthError("full")), {}, StopReason.MAX_TOKENS),
        (ScriptedSession(answer("cut of"), finish_reason="length"), {}, StopReason.MAX_TOKENS),
    ],
)
async def test_a_spent_budget_is_judged_like_an_answer(session: Any, agent: Any, stop: StopReason):
    record = await run(session, verifier=FunctionVerifier(0.5), **agent)
    assert (record.outcome, record.reward, record.stop_reason) == (Outcome.SCORED, 0.5, stop)
    assert record.trainable


async def test_a_workspace_made_for_several_is_entered_instead_of_being_set_up():
    class Shared:
        async def enter(self, task: Task, workbench: Any) -> dict[str, Any]:
            await workbench.restore(Snapshot("shared", "h1"))
            return {"of": "all"}

    bench, verifier = FunctionWorkbench(), FunctionVerifier(prepare=never)
    record = await run(
        ScriptedSession(answer("done")), workbench=bench, verifier=verifier, workspace=Shared()
    )
    assert record.outcome is Outcome.SCORED
    assert bench.log == ["restore shared", "quiesce", "release"]
    assert verifier.seen_meta == {"of": "all"}


async def test_no_room_for_any_reply_is_the_agents_failure_and_cannot_be_trained_on():
    record = await run(ScriptedSession(ContextLengthError("full")))
    assert (record.outcome, record.reward, record.trainable) == (Outcome.AGENT_FAILED, 0.0, False)


@pytest.mark.parametrize(
    "error",
    [PolicyError("500"), SlotLostError("gone"), HostLostError("gone"), AcquireTimeoutError("none")],
)
@pytest.mark.parametrize("where", ["policy", "tool", "prepare", "verify"])
async def test_an_infrastructure_failure_anywhere_is_never_a_score(error: Exception, where: str):
    async def fail(*_: Any) -> Any:
        raise error

    bench = FunctionWorkbench(fail if where == "tool" else None)
    record = await run(
        ScriptedSession(error if where == "policy" else calls("terminal"), answer("done")),
        workbench=bench,
        verifier=FunctionVerifier(
            error if where == "verify" else 1.0, prepare=fail if where == "prepare" else None
        ),
    )
    assert (record.outcome, record.reward) == (Outcome.INFRASTRUCTURE_FAILED, None)
    assert type(error).__name__ in (record.cause or "")
    assert not record.trainable
    assert bench.log[-1] == "release"


@pytest.mark.parametrize(
    "verdict",
    [
        ValueError("bug"),
        float("nan"),
        float("inf"),
        float("-inf"),
        "1",
        None,
        True,
        [1.0],
        np.bool_(True),
    ],
    ids=repr,
)
async def test_a_verifier_without_a_finite_number_gives_no_reward(verdict: Any):
    record = await run(ScriptedSession(answer("x")), verifier=FunctionVerifier(verdict))
    assert (record.outcome, record.reward) == (Outcome.VERIFIER_FAILED, None)
    assert not record.trainable


@pytest.mark.parametrize("verdict", [1, 0, -2.5, np.float32(0.5), np.int64(3)], ids=repr)
async def test_numbers_of_any_library_are_rewards(verdict: Any):
    record = await run(ScriptedSession(answer("x")), verifier=FunctionVerifier(verdict))
    assert record.reward == float(verdict)
    assert type(record.reward) is float


async def test_a_hanging_verifier_ends_by_its_deadline():
    record = await run(
        ScriptedSession(answer("x")),
        verifier=FunctionVerifier(never),
        limits=RolloutLimits(rollout_timeout_s=60, verify_timeout_s=0.05),
    )
    assert record.outcome is Outcome.VERIFIER_FAILED
    assert "verify_timeout_s" in (record.cause or "")


async def test_waiting_for_a_slot_counts_against_no_hook_and_no_agent():
    bench = FunctionWorkbench()

    async def wait() -> None:
        await asyncio.sleep(1.2)

    bench.slot_wait = wait

    async def prepare(exec_tool: Any) -> dict[str, Any]:
        await exec_tool(ToolCall("setup"))
        return {}

    record = await run(
        ScriptedSession(calls("terminal"), answer("x")),
        workbench=bench,
        verifier=FunctionVerifier(prepare=prepare),
        limits=RolloutLimits(rollout_timeout_s=1.0, verify_timeout_s=1.0),
    )
    assert (record.outcome, record.stop_reason) == (Outcome.SCORED, StopReason.FINAL_ANSWER)


async def test_an_engine_that_never_answers_is_the_engines_failure():
    record = await run(ScriptedSession(never), turn_timeout_s=0.05)
    assert record.outcome is Outcome.INFRASTRUCTURE_FAILED
    assert PolicyTimeoutError.__name__ in (record.cause or "")


async def test_an_agent_whose_tools_ate_its_time_is_judged_as_it_stands():
    async def slow(call: ToolCall) -> ToolResult:
        await asyncio.sleep(0.12)
        return ToolResult(True, "slow")

    record = await run(
        ScriptedSession(*[calls("terminal")] * 50),
        workbench=FunctionWorkbench(slow),
        limits=RolloutLimits(rollout_timeout_s=0.1, verify_timeout_s=5),
    )
    assert (record.outcome, record.stop_reason) == (Outcome.SCORED, StopReason.TIMEOUT)


async def test_a_call_may_not_outlast_its_own_limit_nor_the_rollout():
    for limits, expected in (
        (RolloutLimits(60, 5, max_tool_timeout_s=50), 50),
        (RolloutLimits(20, 5, max_tool_timeout_s=50), 20),
    ):
        bench = FunctionWorkbench()
        await run(ScriptedSession(calls("terminal"), answer("")), workbench=bench, limits=limits)
        assert bench.limits == [pytest.approx(expected, abs=5)]


async def test_a_reply_cut_by_the_rollouts_own_deadline_is_a_spent_budget():
    async def slow_tool(call: ToolCall) -> ToolResult:
        await asyncio.sleep(0.3)
        return ToolResult(True, "ok")

    record = await run(
        ScriptedSession(calls("terminal"), never),
        workbench=FunctionWorkbench(slow_tool),
        limits=RolloutLimits(rollout_timeout_s=0.5, verify_timeout_s=5),
    )
    assert (record.outcome, record.stop_reason) == (Outcome.SCORED, StopReason.TIMEOUT)


async def test_a_single_reply_that_takes_half_the_rollouts_time_is_the_engines_failure():
    record = await run(
        ScriptedSession(never), limits=RolloutLimits(rollout_timeout_s=1.0, verify_timeout_s=5)
    )
    assert record.outcome is Outcome.INFRASTRUCTURE_FAILED


async def test_an_agent_that_kills_its_own_slot_has_failed_and_is_not_retried_for_free():
    async def die(call: ToolCall) -> ToolResult:
        raise SlotExhaustedError("it used up its memory")

    record = await run(
        ScriptedSession(calls("terminal"), answer("x")), workbench=FunctionWorkbench(die)
    )
    assert (record.outcome, record.reward, record.trainable) == (Outcome.AGENT_FAILED, 0.0, True)
    left_behind = await run(
        ScriptedSession(answer("x")), verifier=FunctionVerifier(SlotExhaustedError("at last"))
    )
    assert (left_behind.outcome, left_behind.reward) == (Outcome.AGENT_FAILED, 0.0)


async def test_a_slot_exhausted_by_the_set_up_is_nobodys_score():
    async def prepare(exec_tool: Any) -> dict[str, Any]:
        raise SlotExhaustedError("too large")

    record = await run(ScriptedSession(answer("x")), verifier=FunctionVerifier(prepare=prepare))
    assert (record.outcome, record.reward) == (Outcome.INFRASTRUCTURE_FAILED, None)


async def test_calls_of_one_reply_run_in_order_and_are_answered_by_id():
    session = ScriptedSession(calls("a", "b", "c"), answer("x"))
    bench = FunctionWorkbench()
    await run(session, workbench=bench)
    assert bench.log[:3] == ["call a", "call b", "call c"]
    answers = [m for m in session.messages if m.role == "tool"]
    assert [m.tool_call_id for m in answers] == ["call-0", "call-1", "call-2"]


async def test_a_cancelled_rollout_releases_its_slot_before_it_ends():
    bench = FunctionWorkbench()
    task = asyncio.create_task(run(ScriptedSession(never), workbench=bench))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.log == ["release"]


async def test_a_second_cancellation_does_not_abort_teardown():
    done: list[str] = []
    may_end = asyncio.Event()

    async def teardown() -> None:
        await may_end.wait()
        done.append("torn down")

    task = asyncio.create_task(finish(teardown()))
    for _ in range(2):
        await asyncio.sleep(0.01)
        task.cancel()
    await asyncio.sleep(0.01)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["torn down"]


async def test_a_bug_in_a_hook_is_shown_once_however_many_rollouts_it_hits(caplog: Any):
    def bug() -> float:
        raise KeyError("the same bug")

    for _ in range(5):
        record = await run(ScriptedSession(answer("x")), verifier=FunctionVerifier(bug))
        assert record.outcome is Outcome.VERIFIER_FAILED
    shown = [entry for entry in caplog.records if entry.levelname == "WARNING"]
    assert len(shown) == 1
    assert shown[0].exc_info is not None


@pytest.mark.parametrize("where", ["prepare", "verify"])
async def test_a_hook_that_catches_a_lost_sandbox_and_answers_all_the_same_gives_no_score(
    where: str,
):
    async def lost(call: ToolCall) -> ToolResult:
        raise SlotLostError("gone")

    class Careless(FunctionVerifier):
        async def swallow(self, exec_tool: Any) -> dict[str, Any]:
            try:
                await exec_tool(ToolCall("terminal"))
            except Exception:  # noqa: BLE001 - as careless code does
                return {}
            return {}

        async def prepare(self, task: Any, *, trajectory_id: str, exec_tool: Any) -> Any:
            return await self.swallow(exec_tool) if where == "prepare" else {}

        async def verify(self, task: Any, result: Any, *, exec_tool: Any, **rest: Any) -> Any:
            if where == "verify":
                await self.swallow(exec_tool)
            return Verdict(0.0)

    record = await run(
        ScriptedSession(answer("done")), workbench=FunctionWorkbench(lost), verifier=Careless()
    )
    assert (record.outcome, record.reward) == (Outcome.INFRASTRUCTURE_FAILED, None)
    assert "gone" in (record.cause or "")


async def test_a_hook_whose_own_work_was_cancelled_has_failed_and_withdraws_nothing():
    record = await run(ScriptedSession(answer("done")), verifier=FunctionVerifier(_raise_cancelled))
    assert record.outcome is Outcome.VERIFIER_FAILED


def _raise_cancelled() -> Any:
    raise asyncio.CancelledError


@pytest.mark.parametrize("reward", [np.array([1.0, 2.0]), 10**400])
async def test_a_reward_that_cannot_be_a_float_is_the_verifiers_failure(reward: Any):
    record = await run(ScriptedSession(answer("done")), verifier=FunctionVerifier(reward))
    assert record.outcome is Outcome.VERIFIER_FAILED
