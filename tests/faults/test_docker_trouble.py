"""An engine that is not there, an image that is not, a disk that is full: each is told in a sentence that names the
setting, or is the agent's to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.errors import InfrastructureError
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from tests.docker_engine import IMAGE, needs_engine
from tests.faults.containers import docker_pool, real_engine
from tests.faults.ledger_env import append_by_seed, call_text, ledger_env
from tests.faults.ledger_runs import collected
from tests.faults.programs import program
from tests.faults.sandboxes import local_pool
from tests.processes import process_of

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.run.record import GroupRecord
    from agentenv.testing import FakeRequest
    from agentenv.testing.script import Script
    from agentenv_backends.pool import SlotPool

pytestmark = [pytest.mark.docker, pytest.mark.sandbox, pytest.mark.slow, needs_engine]
_SHUT = "127.0.0.1:9"
"""Where nobody listens."""
_GROUP = 4

_REFUSALS = {
    "no_socket": (
        {"docker_host": "unix:///nowhere/docker.sock"},
        ("unix:///nowhere/docker.sock", "is it running", "docker_host"),
    ),
    "nobody_listens": ({"docker_host": f"tcp://{_SHUT}"}, (_SHUT, "is it running", "docker_host")),
    "no_address": ({"docker_host": "nowhere"}, ("nowhere", "docker_host")),
    "no_image": ({"image": "no/such:image", "pull": "never"}, ("no/such:image", "pull: missing")),
    "no_registry": ({"image": f"{_SHUT}/no:image"}, (f"{_SHUT}/no:image", "connection refused")),
    "no_network": (
        {"image": IMAGE, "pull": "never", "allow_network": "true", "network": "nowhere"},
        ("network nowhere not found",),
    ),
}
"""Settings that cannot work, and what has to be told."""


@pytest.mark.parametrize(("settings", "told"), _REFUSALS.values(), ids=list(_REFUSALS))
async def test_what_is_not_there_is_told_in_a_sentence(
    tmp_path: Path, settings: dict[str, str], told: tuple[str, ...]
):
    flags = [
        word
        for name, value in {"type": "docker", **settings}.items()
        for word in (f"--env.backend.{name}", value)
    ]
    policy = ("--openai.server_type", "vllm", "--openai.base_url", f"http://{_SHUT}/v1")
    command = ("-m", "agentenv", "process", "configs/shell_tasks.yaml", *policy)
    output = tmp_path / "output.txt"
    async with program(
        *command, "--run-dir", str(tmp_path / "run"), *flags, output=output
    ) as running:
        assert await running.ended(within_s=60) == 1
    text = output.read_text()
    assert "error: " in text
    assert "Traceback" not in text
    assert not [words for words in told if words not in text], text


# --- Inside ---------------------------------------------------------------------------------------


def fill_the_disk_first(request: FakeRequest) -> str:
    """Half of the agents fill their workspace and clear it again; then all act by seed."""
    if request.turn == 0:
        return call_text("cat /dev/zero > filler; rm filler" if (request.seed or 0) % 2 else "true")
    return append_by_seed(_later(request))


def only_the_rest(request: FakeRequest) -> str:
    """The same without filling anything."""
    return call_text("true") if request.turn == 0 else append_by_seed(_later(request))


def mark_and_look(request: FakeRequest) -> str:
    """Show what is outside the workspace that anyone can write, and leave something there; then act by seed."""
    if request.turn == 0:
        return call_text("ls -A /var/tmp /tmp; touch /var/tmp/mark /tmp/mark")
    return append_by_seed(_later(request))


def _later(request: FakeRequest) -> FakeRequest:
    return replace(request, turn=request.turn - 1)


async def _collect(path: Path, pool: SlotPool, script: Script) -> list[GroupRecord]:
    env = ledger_env(pool, script=script, group_size=_GROUP, total_steps=4)
    groups = await collected(env, path)
    async with real_engine() as docker:
        assert not await docker.containers_of(process_of(os.getpid()))
    return groups


def _scores(groups: list[GroupRecord]) -> list[list[float]]:
    return [group.group["scores"] for group in groups]


def _first_results(groups: list[GroupRecord]) -> list[str]:
    """What each agent's first call gave it."""
    trajectories = [record for group in groups for record in group.trajectories]
    return [record.steps[0].tool_calls[0].output for record in trajectories]


async def test_a_full_disk_is_its_agents_to_read_and_changes_nobodys_reward(tmp_path: Path):
    pool, _ = docker_pool(slots=4, max_hosts=2)
    filled = await _collect(tmp_path / "filled", pool, fill_the_disk_first)
    local, _ = local_pool(8)
    spared = await _collect(tmp_path / "spared", local, only_the_rest)
    full = ["No space left on device" in result for result in _first_results(filled)]
    assert set(full) == {True, False}
    assert _scores(filled) == _scores(spared)


async def test_a_command_killed_for_what_another_slot_took_is_a_failure_of_the_sandbox():
    holds = "import time; held = bytearray(90 << 20); time.sleep(6); print('held')"
    takes = "import time; taken = bytearray(60 << 20); time.sleep(3)"
    pool, provider = docker_pool(slots=2, max_hosts=1, memory_mb=128)
    async with pool, real_engine() as docker:
        slot, other = await pool.acquire("one"), await pool.acquire("other")
        name = provider.container_names[slot.host_id]
        held = asyncio.create_task(pool.execute(slot, ExecRequest(f'python3 -c "{holds}"')))
        while await docker.memory_of(name) < 90 << 20 and not held.done():
            pass
        with contextlib.suppress(InfrastructureError):  # nor can it be told that it was this one
            await pool.execute(
                other, ExecRequest(f"for i in 1 2 3 4 5 6; do python3 -c '{takes}' & done; wait")
            )
        (answer,) = await asyncio.gather(held, return_exceptions=True)
    if not isinstance(answer, InfrastructureError):
        assert isinstance(answer, ExecResult)
        assert answer.stdout.text() == "held\n", answer


async def test_a_container_that_can_be_written_everywhere_serves_one_trajectory_and_no_other(
    tmp_path: Path,
):
    pool, _ = docker_pool(slots=1, max_hosts=4, warm_slots=2, read_only_root=False)
    groups = await _collect(tmp_path / "run", pool, mark_and_look)
    assert set(_first_results(groups)) == {"/tmp:\n\n/var/tmp:\n"}
    counters = pool.counters()
    assert counters.granted == counters.released == sum(map(len, _scores(groups)))
    assert counters.launched >= counters.granted
