"""An item chooses the kind of sandbox that its trajectories run in."""

from dataclasses import replace

import pytest

from agentenv import AgentConfig, Item
from agentenv_backends.errors import CapabilityError
from agentenv_backends.pool import SlotPool
from agentenv_backends.profiles import ProfiledPools
from agentenv_backends.settings import Limits, PoolSettings
from agentenv_backends.testing import FakeProvider, exec_result
from tests.agentenv.fake_env import EchoEnv, make_env
from tests.agentenv_backends.virtual_time import in_virtual_time


class PickyEnv(EchoEnv):
    """Odd items want `big` sandboxes."""

    def build_agent_config(self, item: Item) -> AgentConfig:
        usual = super().build_agent_config(item)
        return replace(usual, sandbox_profile="big") if item % 2 else usual


class Where:
    """Two kinds of sandboxes, and which commands ran in which."""

    def __init__(self, *profiles: str) -> None:
        self.ran: dict[str, set[str]] = {name: set() for name in profiles}
        self.backend = ProfiledPools({name: self._pool(name) for name in profiles})

    def _pool(self, name: str) -> SlotPool:
        def note(_slot, request):
            self.ran[name].add(request.command)
            return exec_result()

        limits = Limits(slots_per_host=8, host_prefix=f"{name}-")
        return SlotPool(FakeProvider(on_exec=note), PoolSettings(limits=limits))


@pytest.mark.parametrize("shared", [False, True])
def test_a_trajectory_runs_in_a_sandbox_of_the_kind_that_its_item_wants(shared: bool):
    @in_virtual_time
    async def test():
        where = Where("default", "big")
        env = make_env(env_cls=PickyEnv, backend=where.backend, share_workspace_setup=shared)
        await env.setup()
        for item in (4, 7):
            group, _ = await env.collect_trajectories(item)
            assert group is not None
        await env.shutdown()
        assert where.ran == {"default": {"echo 4", "echo look"}, "big": {"echo 7", "echo look"}}

    test()


def test_a_kind_that_is_not_there_is_refused_by_name():
    @in_virtual_time
    async def test():
        env = make_env(env_cls=PickyEnv, backend=Where("default").backend)
        await env.setup()
        with pytest.raises(CapabilityError, match="no profile 'big'"):
            await env.collect_trajectories(7)
        await env.shutdown()

    test()
