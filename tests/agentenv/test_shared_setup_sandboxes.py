"""`share_workspace_setup` in real sandboxes."""

import asyncio
import os
import signal
from typing import Any

import pytest

from agentenv.group import GroupContext, current_group
from agentenv_backends.config import LocalConfig
from agentenv_backends.local import LocalProvider
from agentenv_backends.pool import SlotPool
from tests.agentenv.fake_env import make_env
from tests.agentenv.file_env import FileEnv, reader

pytestmark = pytest.mark.sandbox


async def collect(
    *, shared: bool, script: Any = reader, set_ups: int | None = None, **backend: Any
) -> tuple[Any, list[str]]:
    """A group of six, and what each agent saw first."""
    env = make_env(
        script,
        env_cls=FileEnv,
        backend=backend.pop("pool", None) or LocalConfig(**backend).build(),
        share_workspace_setup=shared,
        group_size=6,
        policy_retry_limit=5,
    )
    assert isinstance(env, FileEnv)
    context = GroupContext(0)
    current_group.set(context)
    await env.setup()
    try:
        async with asyncio.timeout(60):
            group, backlog = await env.collect_trajectories(5)
    finally:
        await env.shutdown()
    assert backlog == []
    assert len(env.set_ups) == (set_ups or (1 if shared else 6))
    results = [member.records[-1].result for member in context.members]
    return group, [result.steps[0].tool_results[0].output for result in results if result]


@pytest.mark.parametrize(
    "backend", [{"slots": 8, "warm_slots": 4}, {"slots": 2, "max_hosts": 2}], ids=str
)
async def test_it_gives_the_group_that_a_set_up_of_each_member_gives(backend: dict[str, Any]):
    shared, seen = await collect(shared=True, **backend)
    own, seen_by_own = await collect(shared=False, **backend)
    assert shared == own
    assert seen == seen_by_own == ["prepared 5\n"] * 6


async def test_a_host_that_is_killed_takes_the_snapshot_with_it_and_changes_no_reward():
    config = LocalConfig(slots=8)
    provider = LocalProvider(config)
    killed: list[int] = []

    def script(request: Any) -> str:
        if not killed:
            killed.append(provider.hosts["h1"].pid)
            os.kill(killed[0], signal.SIGKILL)
        return reader(request)

    pool = SlotPool(provider, config.pool_settings())
    shared, seen = await collect(shared=True, script=script, set_ups=2, pool=pool)
    own, _ = await collect(shared=False, slots=8)
    assert killed
    assert shared == own
    assert seen == ["prepared 5\n"] * 6
