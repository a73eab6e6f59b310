"""Terminals in whole rollouts: recorded before the agent's processes are killed, and kept with the run."""

import json
from typing import Any

import pytest

from agentenv import ToolCall
from agentenv.process import process
from agentenv.run.casts import read_cast
from agentenv.run.directory import RunDirectory, read_groups
from agentenv.testing import FakeRequest
from agentenv_backends.base import Capabilities
from agentenv_backends.errors import CapabilityError
from agentenv_backends.requests import ExecRequest, KillRequest, RecordingRequest, ShellRequest
from agentenv_backends.testing import FakeProvider, Faults, fake_pool
from tests.agentenv.fake_env import EchoEnv, make_env

TERMINALS = Capabilities("bubblewrap", True, True, True, True, stateful_terminals=True, tmux=True)
STATEFUL = ["default", "terminal_stateful"]
ROOM: dict[str, Any] = {"enabled_toolsets": STATEFUL, "max_token_length": 20_000}


def worker(request: FakeRequest) -> str:
    """One command in the persistent shell, then an answer that is right or wrong by its seed."""
    if request.turn == 0:
        call = {"name": "terminal_stateful", "arguments": {"command": "background still here"}}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    return "right" if (request.seed or 0) % 2 else "wrong"


class Noting(FakeProvider):
    """Notes what its slots were asked, also those that are gone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(capabilities=TERMINALS, **settings)
        self.asked: list[list[Any]] = []

    async def launch(self, host_id: str) -> Any:
        host = await super().launch(host_id)
        opened = host.open_slot

        async def open_slot(slot_id: str) -> None:
            await opened(slot_id)
            self.asked.append(host.slots[slot_id].requests)

        host.open_slot = open_slot  # type: ignore[method-assign]
        return host


async def collect(env: EchoEnv, path: Any) -> list[Any]:
    directory = await RunDirectory.open(path)
    try:
        await process(env, directory=directory, handle_signals=False)
    finally:
        await directory.close()
    return list(read_groups(path))


async def test_what_terminals_showed_is_in_the_run_directory_and_named_by_the_record(tmp_path):
    env = make_env(worker, backend=fake_pool(Noting()), **ROOM)
    groups = await collect(env, tmp_path)
    named = [path for group in groups for one in group.trajectories for path in one.casts]
    assert len(named) == 3 * 2
    assert sorted(named) == sorted(f"casts/{file.name}" for file in (tmp_path / "casts").iterdir())
    first = groups[0].trajectories[0]
    assert first.casts == (f"casts/{groups[0].group_id}.{first.trajectory_id}.shell-1.cast",)
    cast, _ = read_cast(tmp_path / first.casts[0], 10**6)
    printed = "".join(event.data for event in cast.events)
    assert printed == "$ background still here\r\nstill here\r\n"


async def test_recordings_are_asked_for_before_the_agents_processes_are_killed(tmp_path):
    provider = Noting()
    env = make_env(worker, backend=fake_pool(provider), **ROOM, total_steps=1)
    await collect(env, tmp_path)
    kinds = [[type(request) for request in asked] for asked in provider.asked if asked]
    asked = [ExecRequest, ShellRequest, RecordingRequest, KillRequest, RecordingRequest]
    assert kinds == [asked] * 2


class VerifyingEnv(EchoEnv):
    """Looks into the workspace by the persistent shell."""

    async def verify_and_score_trajectory(self, *args: Any, **keywords: Any) -> Any:
        await keywords["exec_tool"](ToolCall("terminal_stateful", {"command": "echo judged"}))
        return 1.0, {}


async def test_a_verifiers_terminal_is_a_session_of_its_own(tmp_path):
    env = make_env(
        worker,
        backend=fake_pool(Noting()),
        **ROOM,
        env_cls=VerifyingEnv,
        total_steps=1,
    )
    (group,) = await collect(env, tmp_path)
    names = [path.split(".")[-2] for path in group.trajectories[0].casts]
    assert names == ["shell-1", "shell-2"]


async def test_a_run_without_terminals_asks_for_no_recording_and_writes_no_casts(tmp_path):
    provider = Noting()
    groups = await collect(make_env(backend=fake_pool(provider)), tmp_path)
    assert [one.casts for group in groups for one in group.trajectories] == [()] * 6
    assert not (tmp_path / "casts").exists()
    assert not any(isinstance(one, RecordingRequest) for asked in provider.asked for one in asked)


async def test_lost_slots_change_no_reward_and_leave_what_was_recorded(tmp_path):
    async def run(name: str, **faults: float) -> list[Any]:
        backend = fake_pool(Noting(faults=Faults(seed=3, **faults)), max_hosts=2)  # type: ignore[arg-type]
        env = make_env(
            worker,
            backend=backend,
            **ROOM,
            policy_retry_limit=8,
            total_steps=6,
            max_num_workers=1,
        )
        return await collect(env, tmp_path / name)

    calm, stormy = await run("calm"), await run("stormy", slot_lost=0.1)
    retried = [one for group in stormy for one in group.trajectories if one.outcome != "scored"]
    assert retried
    assert [group.group["scores"] for group in stormy] == [group.group["scores"] for group in calm]
    for group in stormy:
        for one in group.trajectories:
            assert one.outcome != "scored" or one.casts
            assert all((tmp_path / "stormy" / path).exists() for path in one.casts)


@pytest.mark.parametrize(
    ("offered", "config"),
    [
        (Capabilities("bubblewrap", True, True, True, True), {"enabled_toolsets": STATEFUL}),
        (
            Capabilities("none", True, True, True, True, stateful_terminals=True, tmux=True),
            {"enabled_toolsets": STATEFUL, "require_stateful_sandbox": True},
        ),
    ],
)
async def test_terminals_that_cannot_be_had_are_refused_before_anything_runs(offered, config):
    env = make_env(worker, backend=fake_pool(FakeProvider(capabilities=offered)), **config)
    with pytest.raises(CapabilityError, match="stateful"):
        await env.setup()
