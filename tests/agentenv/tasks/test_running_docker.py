"""Runs of tasks in containers: what only images have."""

import json
from pathlib import Path

import pytest

from agentenv.tasks import FailureCause, RunOptions, TaskResult, nop_agent, oracle_agent, run_task
from tests.agentenv.tasks.task_dirs import write_task
from tests.docker_engine import IMAGE, needs_engine

pytestmark = [pytest.mark.docker, pytest.mark.slow, needs_engine]
TOML = """schema_version = "1.4"
artifacts = ["made"]
[environment]
network_mode = "no-network"
memory_mb = 256
build_timeout_sec = 120.0
[environment.env]
GREETING = "hello"
"""
DOCKERFILE = f"FROM {IMAGE}\nENV SHADE=dark\nWORKDIR /app\nRUN echo 6 > six\n"
SOLVING = '#!/bin/bash\n[ "$(id -u)$PWD$HOME$SHADE$GREETING" = 0/app/rootdarkhello ] && expr $(cat six) \\* 7 > made\n'
CHECKING = (
    '#!/bin/bash\n[ "$(cat /app/made)" = 42 ] && r=1; echo ${r:-0} > /logs/verifier/reward.txt\n'
)


async def run(task: Path, *, oracle: bool = True) -> TaskResult:
    return await run_task(
        task,
        agent=oracle_agent() if oracle else nop_agent(),
        provider="docker",
        output_dir=task.parent / "out",
        options=RunOptions(backend={"acquire_timeout_s": 300}),
    )


async def test_a_task_is_built_from_its_dockerfile_and_worked_on_as_root_in_its_directory(tmp_path):
    files = {"environment/Dockerfile": DOCKERFILE}
    task = write_task(tmp_path / "t", TOML, files, tests=CHECKING, solution=SOLVING)
    result = await run(task)
    assert (result.error, result.reward) == (None, 1.0)
    assert (result.output_dir / "artifacts/app/made").read_text() == "42\n"
    assert any("was root" in warning for warning in result.warnings)


async def test_a_verifier_with_an_image_of_its_own_brings_its_tests(tmp_path):
    toml = f'{TOML}\n[verifier.environment]\nnetwork_mode = "no-network"\nmemory_mb = 256\n'
    files = {
        "environment/Dockerfile": DOCKERFILE,
        "tests/Dockerfile": f"FROM {IMAGE}\nWORKDIR /app\nCOPY own.sh /tests/test.sh\n",
        "tests/own.sh": CHECKING.replace("-0}", "-0.25}"),
    }
    task = write_task(tmp_path / "t", toml, files, tests=None, solution=SOLVING)
    result = await run(task)
    assert (result.error, result.reward, result.verifier_environment_mode) == (
        None,
        1.0,
        "separate",
    )
    assert (await run(task, oracle=False)).reward == 0.25


async def test_an_image_that_cannot_be_had_is_the_sandboxs_failure(tmp_path):
    files = {"environment/Dockerfile": f"FROM {IMAGE}\nRUN exit 3\n"}
    result = await run(write_task(tmp_path / "t", TOML, files))
    assert result.exception_info is not None
    assert result.exception_info.exception_type == "SandboxBuildFailedError"
    assert (result.failure_cause, result.counts) == (FailureCause.SANDBOX_FAILED, False)
    written = json.loads((result.output_dir / "result.json").read_text())
    assert written["exception_info"]["exception_type"] == "SandboxBuildFailedError"


COMPOSE = f"""services:
  main: {{environment: {{SHADE: dark, GREETING: hello}}, depends_on: [answers]}}
  answers:
    image: {IMAGE}
    working_dir: /srv
    command: python3 -u -m http.server 80
    volumes: ["./asked:/srv"]
    environment: {{API_TOKEN: "${{AGENTENV_TEST_NONE:-not-to-be-seen}}"}}
    healthcheck: {{test: test -e /srv/six, interval: 1s}}
"""
ASKING = """#!/bin/bash
six=$(python3 -c 'import urllib.request as u; print(u.urlopen("http://answers/six", timeout=60).read().decode())')
expr $six \\* 7 > /app/made
"""


async def test_a_task_with_services_needs_what_they_serve(tmp_path):
    files = {
        "environment/Dockerfile": DOCKERFILE,
        "environment/docker-compose.yaml": COMPOSE,
        "environment/asked/six": "6",
    }
    task = write_task(tmp_path / "t", TOML, files, tests=CHECKING, solution=ASKING)
    result = await run(task)
    assert (result.error, result.reward) == (None, 1.0)
    for name in ("lock.json", "result.json", "config.json"):
        assert "not-to-be-seen" not in (result.output_dir / name).read_text()
    assert (await run(task, oracle=False)).reward == 0.0


async def test_services_of_a_verifier_are_refused_with_the_reason(tmp_path):
    toml = f'{TOML}\n[verifier.environment]\ndocker_image = "{IMAGE}"\n'
    files = {
        "environment/Dockerfile": DOCKERFILE,
        "tests/docker-compose.yaml": "services: {}\n",
    }
    result = await run(write_task(tmp_path / "t", toml, files))
    assert "tests/docker-compose.yaml" in str(result.error)
    assert result.failure_cause is FailureCause.HARBOR_FAILED


async def test_a_task_is_solved_in_an_image_with_nothing_but_a_shell(tmp_path, busybox_image):
    toml = TOML.replace("[environment]\n", f'[environment]\ndocker_image = "{busybox_image}"\n')
    shell = "#!/bin/sh\n"
    solution = f"{shell}expr 6 \\* 7 > /workspace/made\n"
    tests = CHECKING.replace("#!/bin/bash\n", shell).replace("/app/", "/workspace/")
    task = write_task(tmp_path / "t", toml, tests=tests, solution=solution)
    result = await run(task)
    assert (result.error, result.reward) == (None, 1.0)
