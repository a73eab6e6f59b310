"""Runs of tasks in sandboxes of an emulated Modal: what only images have, and what is refused."""

from pathlib import Path

import pytest

from agentenv.tasks import FailureCause, RunOptions, TaskResult, nop_agent, oracle_agent, run_task
from tests.agentenv.tasks.task_dirs import write_task
from tests.agentenv.tasks.test_running_docker import CHECKING, SOLVING, TOML
from tests.modal_service import needs_modal

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, needs_modal]
DOCKERFILE = """FROM python:3.12-slim
ENV SHADE=dark
WORKDIR /app
COPY data/six ./six
RUN expr $(cat six) + 0 > seen
"""


async def run(task: Path, *, oracle: bool = True) -> TaskResult:
    return await run_task(
        task,
        agent=oracle_agent() if oracle else nop_agent(),
        provider="modal",
        output_dir=task.parent / "out",
        options=RunOptions(backend={"app_name": "agentenv-tests"}),
    )


async def test_a_task_is_built_by_modal_and_worked_on_as_root_in_its_directory(tmp_path):
    files = {"environment/Dockerfile": DOCKERFILE, "environment/data/six": "6\n"}
    solving = SOLVING.replace("&&", "&& test $(cat seen) = 6 &&", 1)
    task = write_task(tmp_path / "t", TOML, files, tests=CHECKING, solution=solving)
    result = await run(task)
    assert (result.error, result.reward) == (None, 1.0)
    assert (result.output_dir / "artifacts/app/made").read_text() == "42\n"
    assert any("was root" in warning for warning in result.warnings)
    assert (await run(task, oracle=False)).reward == 0.0


async def test_a_dockerfile_that_does_not_build_is_the_sandboxs_failure(tmp_path):
    files = {"environment/Dockerfile": "FROM python:3.12-slim\nRUN exit 3\n"}
    result = await run(write_task(tmp_path / "t", TOML, files))
    assert result.exception_info is not None
    assert result.exception_info.exception_type == "SandboxBuildFailedError"
    assert "Dockerfile" in str(result.error)
    assert (result.failure_cause, result.counts) == (FailureCause.SANDBOX_FAILED, False)
