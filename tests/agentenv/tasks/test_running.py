"""Runs of small tasks in real local sandboxes: what is scored, what is refused, what is left on disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentenv.errors import ContextLengthError, PolicyRequestError, PolicyTimeoutError
from agentenv.harness import AgentClock
from agentenv.session import Session
from agentenv.task import Task
from agentenv.tasks import (
    FailureCause,
    PlacePool,
    RunOptions,
    TaskAgent,
    TaskResult,
    nop_agent,
    oracle_agent,
    run_task,
)
from agentenv.tasks.agents import NopHarness
from agentenv.tasks.results import StepResult
from agentenv.types import AgentResult
from agentenv_backends.errors import HostLostError
from agentenv_tools import build_registry
from tests.agentenv.tasks.task_dirs import CHECKING, LOCAL, SOLVING, write_task

if TYPE_CHECKING:
    from agentenv.task import ExecTool

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


async def run(task: Path, agent: TaskAgent | None = None, **options) -> TaskResult:
    return await run_task(
        task,
        agent=agent or oracle_agent(),
        provider="local",
        output_dir=task.parent / "out",
        options=RunOptions(**options),
    )


def exception_of(result: TaskResult | StepResult) -> str:
    assert result.exception_info is not None
    return result.exception_info.exception_type


def rewards_of(result: TaskResult | StepResult) -> dict[str, float] | None:
    assert result.verifier_result is not None
    return result.verifier_result.rewards


def steps_of(result: TaskResult) -> list[StepResult]:
    assert result.step_results is not None
    return result.step_results


def told(result: TaskResult) -> str:
    return (result.output_dir / "exception.txt").read_text()


async def test_the_oracle_solves_a_task_and_everything_is_left_in_one_folder(tmp_path):
    tests = (
        "#!/bin/bash\necho seen; mkdir -p /logs/verifier/sub; echo x > /logs/verifier/sub/y\n"
        + CHECKING
    )
    solution = (
        SOLVING + "echo kept > /logs/artifacts/a.txt; echo log > /logs/agent/own.log; echo said\n"
    )
    task = write_task(tmp_path / "answer", LOCAL, tests=tests, solution=solution)

    result = await run(task)

    assert (result.success, result.reward, result.error) == (True, 1.0, None)
    assert (result.reward_valid, result.counts, result.should_retry) == (True, True, False)
    folder = result.output_dir
    assert folder.parent == (tmp_path / "out").resolve()
    assert folder.name.startswith("answer_")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "config.json", "lock.json", "result.json", "trial.log",
        "agent/oracle.txt", "agent/own.log", "agent/trajectory.json",
        "verifier/reward.txt", "verifier/sub/y", "verifier/test-stdout.txt", "artifacts/manifest.json",
        "artifacts/logs/artifacts/a.txt",
    }  # fmt: skip
    assert (folder / "agent/oracle.txt").read_text() == "said\n"
    assert (folder / "verifier/test-stdout.txt").read_text() == "seen\n"
    written = json.loads((folder / "result.json").read_text())
    assert written["verifier_result"] == {"rewards": {"reward": 1.0}}
    assert written["task_checksum"] == result.task_checksum
    assert written["agent_info"]["name"] == "oracle"
    assert (written["success"], written["reward"]) == (True, 1.0)
    lock = json.loads((folder / "lock.json").read_text())
    assert lock["task"]["checksum"] == f"sha256:{result.task_checksum}"
    assert (lock["environment"]["provider"], lock["environment"]["backend"]["memory_mb"]) == (
        "local",
        256,
    )
    assert lock["steps"][0]["agent_timeout_sec"] == 60.0
    events = [line.split(" ", 1)[1] for line in (folder / "trial.log").read_text().splitlines()]
    assert events == [
        "start", "environment-start", "agent-start", "agent-end", "verification-start", "verification-end", "end",
    ]  # fmt: skip


async def test_who_does_nothing_scores_nothing(tmp_path):
    result = await run(write_task(tmp_path / "t", LOCAL), nop_agent())
    assert (result.success, result.reward, result.reward_valid) == (False, 0.0, True)


async def test_a_task_without_tests_has_no_reward(tmp_path):
    toml = LOCAL.replace('schema_version = "1.4"', 'version = "1.0"')
    result = await run(write_task(tmp_path / "t", toml, tests=None))
    assert (result.success, result.reward, rewards_of(result)) == (False, 0.0, None)
    assert (result.error, result.reward_valid) == (None, False)


async def test_tests_see_none_of_the_agents_variables_and_a_fresh_home(tmp_path):
    tests = """#!/bin/bash
[ "$GIVEN" = yes ] && [ -z "$(ls -A "$HOME")" ] && [ "$HOME" != "$PWD" ] && [ -z "$(ls -A "$TMPDIR")" ] && r=1
echo ${r:-0} > /logs/verifier/reward.txt
"""
    toml = LOCAL.replace("[verifier]", '[verifier]\nenv = {GIVEN = "${GIVEN:-yes}"}')
    result = await run(write_task(tmp_path / "t", toml, tests=tests), environ={})
    assert result.reward == 1.0


async def test_the_exit_code_of_the_tests_is_ignored(tmp_path):
    tests = "#!/bin/bash\necho 0.67 > /logs/verifier/reward.txt; exit 3\n"
    result = await run(write_task(tmp_path / "t", LOCAL, tests=tests))
    assert (result.reward, result.success, result.error) == (0.67, False, None)


@pytest.mark.parametrize(
    ("tests", "name"),
    [
        ("true", "RewardFileNotFoundError"),
        ("touch /logs/verifier/reward.txt", "RewardFileEmptyError"),
        ("echo nan > /logs/verifier/reward.txt", "VerifierOutputParseError"),
        ("ln -s /etc/passwd /logs/verifier/reward.json", "RewardFileNotFoundError"),
        ("echo 1 > /logs/verifier/reward.txt; kill -9 $$", "VerifierOutputParseError"),
    ],
)
async def test_a_reward_that_is_none_is_the_verifiers_failure(tmp_path, tests, name):
    result = await run(write_task(tmp_path / "t", LOCAL, tests=f"#!/bin/bash\n{tests}\n"))
    assert exception_of(result) == name
    assert (result.failure_cause, result.should_retry) == (FailureCause.VERIFIER_FAILED, False)
    assert (result.reward, result.reward_valid, result.counts) == (0.0, False, True)
    assert name in told(result)


async def test_tests_that_hang_are_ended_with_all_they_started(tmp_path):
    tests = "#!/bin/bash\necho begun\nsleep 600 & sleep 600\n"
    result = await run(write_task(tmp_path / "t", LOCAL, tests=tests), verifier_timeout_s=1.0)
    assert exception_of(result) == "VerifierTimeoutError"
    assert (result.output_dir / "verifier/test-stdout.txt").read_text() == "begun\n"


async def test_the_output_of_tests_is_bounded(tmp_path):
    tests = (
        "#!/bin/bash\necho 1 > /logs/verifier/reward.txt\nhead -c 20000000 /dev/zero\necho end\n"
    )
    result = await run(write_task(tmp_path / "t", LOCAL, tests=tests))
    assert result.reward == 1.0
    text = (result.output_dir / "verifier/test-stdout.txt").read_text()
    assert len(text) < 3_000_000
    assert "bytes dropped" in text
    assert text.endswith("end\n")


async def test_an_agent_whose_time_ran_out_is_judged_all_the_same(tmp_path):
    task = write_task(tmp_path / "t", LOCAL, solution=SOLVING + "sleep 600\n")
    result = await run(task, agent_timeout_s=2.0)
    assert (result.reward, result.success) == (1.0, True)
    assert exception_of(result) == "AgentTimeoutError"
    assert (result.failure_cause, result.reward_valid) == (
        FailureCause.AGENT_EXHAUSTED_BUDGET,
        True,
    )


class Raising:
    """An agent whose surroundings fail. Implements `Harness`."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def run(
        self, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        raise self.error


async def test_whatever_fails_around_an_agent_is_told_apart_and_raises_nothing(tmp_path):
    failures: dict[Exception, tuple[str, bool, bool]] = {
        HostLostError("gone"): ("sandbox_failed", True, False),
        PolicyTimeoutError("no reply"): ("model_provider_failed", True, True),
        PolicyRequestError("refused"): ("model_provider_failed", False, True),
        ContextLengthError("too long"): ("agent_exhausted_budget", False, True),
        ValueError("a bug"): ("unclassified", True, True),
    }
    task = write_task(tmp_path / "t", LOCAL)
    places = PlacePool(build_registry)
    try:
        for error, expected in failures.items():
            result = await run_task(
                task,
                agent=TaskAgent("raising", Raising(error)),
                provider="local",
                output_dir=tmp_path / "out",
                places=places,
            )
            assert exception_of(result) == type(error).__name__
            assert (result.failure_cause, result.should_retry, result.counts) == expected
            assert (result.reward, result.reward_valid) == (0.0, False)
            assert str(error) in told(result)
    finally:
        await places.close()


async def test_an_agent_whose_program_failed_is_judged_all_the_same(tmp_path):
    result = await run(write_task(tmp_path / "t", LOCAL, solution=SOLVING + "exit 7\n"))
    assert result.reward == 1.0
    assert exception_of(result) == "NonZeroAgentExitCodeError"
    assert (result.should_retry, result.reward_valid) == (True, False)


async def test_set_up_commands_and_the_health_check_come_before_the_agent(tmp_path):
    toml = LOCAL + (
        'setup_commands = ["echo 4 > half"]\n[environment.env]\nPART = "2"\n'
        '[environment.healthcheck]\ncommand = "echo >> tries; [ $(wc -l < tries) = 3 ]"\ninterval_sec = 0.05\n'
    )
    solution = '#!/bin/bash\n[ $(wc -l < tries) = 3 ] && echo "$(cat half)$PART" > answer.txt\n'
    result = await run(write_task(tmp_path / "t", toml, solution=solution))
    assert (result.error, result.reward) == (None, 1.0)


@pytest.mark.parametrize(
    ("toml", "name"),
    [
        (
            '[environment.healthcheck]\ncommand = "false"\ninterval_sec = 0.05\nretries = 2',
            "HealthcheckError",
        ),
        ('setup_commands = ["echo oops; exit 4"]', "SetupCommandError"),
    ],
)
async def test_a_sandbox_that_is_not_ready_is_tried_again_and_not_graded(tmp_path, toml, name):
    result = await run(write_task(tmp_path / "t", f"{LOCAL}{toml}\n"))
    assert exception_of(result) == name
    assert (result.failure_cause, result.should_retry) == (FailureCause.SANDBOX_FAILED, True)
    assert (result.counts, result.reward_valid) == (False, False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (("host_image = true", "host_image = false"), "wants image some-image"),
        (('user = "nobody"', 'user = "root"'), "wants root"),
        (('network_mode = "no-network"', 'network_mode = "allowlist"\nallowed_hosts = ["a.b"]'), "may reach a.b"),
        (("memory_mb = 256", 'memory_mb = 256\nworkdir = "/app"'), "works in /app"),
        (("memory_mb = 256", "memory_mb = 256\ngpus = 1"), "gpus = 1"),
        (("memory_mb = 256", 'memory_mb = 256\nos = "windows"'), "windows"),
        (("[verifier]", '[verifier]\nnetwork_mode = "public"'), r"verifier.network_mode is public"),
        (("[verifier]", '[verifier]\nuser = "root"'), "one user"),
        (("memory_mb = 256", 'memory_mb = 256\nenv = {A = "${NOT_SET_ANYWHERE}"}'), "NOT_SET_ANYWHERE"),
    ],
)  # fmt: skip
async def test_what_the_backend_cannot_give_is_refused_with_the_reason(tmp_path, changes, reason):
    files = {"tests/test.bat": ""}
    result = await run(
        write_task(tmp_path / "t", LOCAL.replace(*changes), files), nop_agent(), environ={}
    )
    assert exception_of(result) == "TaskUnsupportedError"
    assert reason in str(result.error)
    assert (result.failure_cause, result.should_retry) == (FailureCause.HARBOR_FAILED, False)
    assert result.counts is False


async def test_an_agent_that_lacks_what_the_task_needs_is_refused(tmp_path):
    no_solution = await run(write_task(tmp_path / "a", LOCAL, solution=None))
    assert "has no solution/solve.sh" in str(no_solution.error)
    goes_on = write_task(tmp_path / "b", LOCAL, {"trajectory.json": "{}"})
    plain = TaskAgent("plain", NopHarness())
    assert "cannot load" in str((await run(goes_on, plain)).error)
    assert (await run(goes_on)).reward == 1.0  # the oracle ignores it


async def test_secrets_reach_the_sandbox_and_no_file(tmp_path):
    toml = LOCAL + '[environment.env]\nSERVICE_KEY = "${SERVICE_KEY}"\n'
    solution = (
        '#!/bin/bash\necho "key: $SERVICE_KEY"; [ -n "$SERVICE_KEY" ] && echo 42 > answer.txt\n'
    )
    tests = CHECKING + 'echo "again: $SERVICE_KEY"\n'
    task = write_task(tmp_path / "t", toml, tests=tests, solution=solution)
    result = await run(task, environ={"SERVICE_KEY": "very-secret-value-1"})
    assert result.reward == 1.0
    for path in result.output_dir.rglob("*"):
        if path.is_file():
            assert "very-secret-value-1" not in path.read_text(), path
    assert "${SERVICE_KEY}" in (result.output_dir / "config.json").read_text()
    assert (result.output_dir / "agent/oracle.txt").read_text() == "key: very****e-1\n"


async def test_artifacts_are_collected_with_a_manifest_and_the_first_claim_wins(tmp_path):
    toml = """artifacts = [
    {source = "made", destination = "kept", exclude = ["*.tmp"]},
    "answer.txt",
    {source = "made/x", destination = "kept/x"},
    "missing",
    {source = "/data", service = "db"},
]
""" + LOCAL  # fmt: skip
    solution = (
        SOLVING + "mkdir made; echo x > made/x; echo t > made/t.tmp; ln -s /etc/passwd made/link\n"
    )
    result = await run(write_task(tmp_path / "t", toml, solution=solution))
    artifacts = result.output_dir / "artifacts"
    assert json.loads((artifacts / "manifest.json").read_text()) == [
        {
            "source": "/logs/artifacts",
            "destination": "logs/artifacts",
            "type": "directory",
            "status": "empty",
        },
        {
            "source": "made",
            "destination": "kept",
            "type": "directory",
            "status": "ok",
            "exclude": ["*.tmp"],
        },
        {
            "source": "answer.txt",
            "destination": "workspace/answer.txt",
            "type": "file",
            "status": "ok",
        },
        {"source": "made/x", "destination": "kept/x", "type": "file", "status": "skipped"},
        {
            "source": "missing",
            "destination": "workspace/missing",
            "type": "file",
            "status": "failed",
        },
        {
            "source": "/data",
            "destination": "data",
            "type": "file",
            "status": "failed",
            "service": "db",
        },
    ]
    assert [p.name for p in (artifacts / "kept").iterdir()] == ["x"]
    assert (artifacts / "workspace/answer.txt").read_text() == "42\n"
    assert any("link" in warning for warning in result.warnings)


async def test_collect_hooks_run_before_artifacts_and_may_fail(tmp_path):
    toml = LOCAL.replace(
        "[environment]",
        '[[verifier.collect]]\ncommand = "cp answer.txt /logs/artifacts/"\n'
        '[[verifier.collect]]\ncommand = "exit 3"\n[environment]',
    )
    result = await run(write_task(tmp_path / "t", toml))
    assert (result.output_dir / "artifacts/logs/artifacts/answer.txt").read_text() == "42\n"
    assert "collect 'exit 3': exit code 3" in result.warnings
    assert result.reward == 1.0


async def test_a_separate_verifier_gets_the_artifacts_and_nothing_else(tmp_path):
    toml = 'artifacts = ["answer.txt"]\n' + LOCAL.replace(
        "[verifier]", '[verifier]\nuser = "nobody"\nenvironment_mode = "separate"'
    )
    tests = """#!/bin/bash
[ "$(cat answer.txt)" = 42 ] && [ ! -e left ] && [ ! -e /tmp/left ] && r=1
echo ${r:-0} > /logs/verifier/reward.txt
"""
    solution = SOLVING + "echo > left; echo > /tmp/left\n"
    result = await run(write_task(tmp_path / "t", toml, tests=tests, solution=solution))
    assert (result.reward, result.error) == (1.0, None)
    assert result.verifier_environment_mode == "separate"


STEPS = (
    LOCAL
    + """
[[steps]]
name = "one"
min_reward = {reward = 0.5, style = 1.0}
[[steps]]
name = "two"
[steps.verifier]
env = {WANTED = "2"}
"""
)
STEP_TESTS = """#!/bin/bash
echo "{\\"reward\\": $(cat mark), \\"style\\": ${STYLE:-1}}" > /logs/verifier/reward.json
"""


def step_files(first: str, second: str) -> dict[str, str]:
    return {
        "steps/one/instruction.md": "One.",
        "steps/two/instruction.md": "Two.",
        "steps/one/solution/solve.sh": f"#!/bin/bash\n{first}\n",
        "steps/two/solution/solve.sh": f"#!/bin/bash\n{second}\n",
        "steps/one/workdir/setup.sh": "echo begun > started",
        "steps/two/tests/test.sh": "#!/bin/bash\n"
        'if [ -e started ] && [ "$WANTED" = 2 ] && [ ! -e /logs/agent/one.log ]; then m=$(cat mark); else m=0; fi\n'
        'echo "{\\"reward\\": $m}" > /logs/verifier/reward.json\n',
    }


@pytest.mark.parametrize(("strategy", "rewards"), [
    ("mean", {"reward": 0.75, "style": 0.5}), ("final", {"reward": 1.0}),
])  # fmt: skip
async def test_steps_are_judged_one_by_one_and_added_up(tmp_path, strategy, rewards):
    files = step_files("echo 0.5 > mark; echo > /logs/agent/one.log", "echo 1 > mark")
    toml = f'multi_step_reward_strategy = "{strategy}"\n{STEPS}'
    task = write_task(
        tmp_path / "t", toml, files, instruction=None, tests=STEP_TESTS, solution=None
    )
    result = await run(task)
    assert rewards_of(result) == rewards
    assert [rewards_of(step) for step in steps_of(result)] == [
        {"reward": 0.5, "style": 1.0},
        {"reward": 1.0},
    ]
    assert (result.output_dir / "steps/one/agent/one.log").exists()
    assert (result.output_dir / "steps/two/verifier/reward.json").exists()


async def test_a_step_below_its_gate_ends_the_run(tmp_path):
    files = step_files("echo 0.4 > mark", "echo 1 > mark")
    task = write_task(
        tmp_path / "t", STEPS, files, instruction=None, tests=STEP_TESTS, solution=None
    )
    result = await run(task)
    assert rewards_of(result) == {"reward": 0.4, "style": 1.0}
    assert [step.step_name for step in steps_of(result)] == ["one"]


async def test_a_step_that_cannot_be_set_up_ends_the_run_and_is_told(tmp_path):
    files = step_files("echo 1 > mark", "echo 1 > mark") | {"steps/two/workdir/setup.sh": "exit 9"}
    task = write_task(
        tmp_path / "t", STEPS, files, instruction=None, tests=STEP_TESTS, solution=None
    )
    result = await run(task)
    second = steps_of(result)[1]
    assert (second.step_name, second.verifier_result) == ("two", None)
    assert exception_of(second) == "SetupCommandError"
    assert (result.reward, result.reward_valid) == (1.0, False)


async def test_a_run_that_is_cancelled_ends_at_once_and_leaves_its_log(tmp_path):
    task = write_task(
        tmp_path / "t", LOCAL, solution="#!/bin/bash\ntouch /logs/agent/x; sleep 600\n"
    )
    running = asyncio.create_task(run(task))
    log = tmp_path / "out"
    async with asyncio.timeout(60):
        while not list(log.glob("*/config.json")):
            await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    (written,) = log.glob("*/trial.log")
    assert written.read_text().splitlines()[-1].endswith(" cancel")


class MeetingHarness(NopHarness):
    """Waits until two agents are in their sandboxes at once."""

    def __init__(self) -> None:
        self._both = asyncio.Barrier(2)

    async def run(self, task, session, exec_tool, clock) -> AgentResult:
        async with asyncio.timeout(50):  # less than a sandbox is waited for
            await self._both.wait()
        return await super().run(task, session, exec_tool, clock)


async def test_runs_that_share_places_have_as_many_sandboxes_as_those_say(tmp_path):
    task = write_task(tmp_path / "t", LOCAL)
    agent = TaskAgent("meeting", MeetingHarness(), ignores_prior_trajectory=True)
    places = PlacePool(agent.tools, sandboxes=2)

    async def one(name: str) -> TaskResult:
        return await run_task(
            task, agent=agent, provider="local", folder=tmp_path / name, places=places
        )

    try:
        found = await asyncio.gather(one("a"), one("b"))
    finally:
        await places.close()
    assert [result.error for result in found] == [None, None]
    assert [result.output_dir for result in found] == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(FileExistsError):
        await run_task(task, agent=agent, provider="local", folder=tmp_path / "a")
