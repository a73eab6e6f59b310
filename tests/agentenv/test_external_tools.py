"""Environments whose agents call tools outside of the sandbox."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from agentenv import AgentEnvConfig, Outcome, Tool, tool
from agentenv.group import GroupContext, current_group
from agentenv.runtime import EnvRuntime
from agentenv.testing import FakePolicy, FakeRequest
from agentenv.tokens.renderer import load_renderer
from agentenv_backends.testing import FakeProvider, fake_pool
from agentenv_tools import ToolConfigError, ToolServerUnavailableError
from agentenv_tools.external.tool_server import ToolServerClient
from agentenv_tools.serving import ServeSettings, ToolServer, serving
from tests.agentenv.fake_env import END, TOKENIZER, EchoEnv

TOKEN = "a-token-of-tests"


@tool
async def oracle(question: str) -> str:
    """Ask the oracle."""
    await asyncio.sleep(0)
    return "right"


def asks_the_oracle(request: FakeRequest) -> str:
    """Two calls: one to the outside, and an answer that repeats what the tool said."""
    if request.turn == 0:
        call = json.dumps({"name": "oracle", "arguments": {"question": "which?"}})
        return f"<tool_call>\n{call}\n</tool_call>"
    return "right"


class OracleEnv(EchoEnv):
    def build_server_tools(self) -> Sequence[Tool[Any]]:
        return (oracle,)

    async def setup_trajectory_workspace(self, item, *, trajectory_id, exec_tool):
        return {}


def make_env(**config: Any) -> OracleEnv:
    settings = AgentEnvConfig(group_size=4, seed=7, renderer="qwen3", **config)
    probe = OracleEnv(settings, [], runtime=object())  # type: ignore[arg-type]
    runtime = EnvRuntime(
        settings,
        [],
        probe.tools,
        backend=fake_pool(FakeProvider(), slots=1),
        policy=FakePolicy(asks_the_oracle, tokenizer=TOKENIZER, end_ids=END),
        renderer=load_renderer(TOKENIZER, "qwen3"),
        served_tools=probe.build_server_tools(),
    )
    return OracleEnv(settings, [], runtime=runtime)


@asynccontextmanager
async def set_up(env: OracleEnv):
    await env.setup()
    try:
        yield env
    finally:
        await env.shutdown()


async def collect(env: OracleEnv) -> tuple[Any, list[Any], GroupContext]:
    context = GroupContext(0)
    token = current_group.set(context)
    try:
        group, backlog = await env.collect_trajectories(0)
    finally:
        current_group.reset(token)
    return group, backlog, context


def texts_of(env: OracleEnv) -> str:
    policy = env.runtime.policy
    assert isinstance(policy, FakePolicy)
    return "".join(TOKENIZER.decode(request.prompt_ids or ()) for request in policy.requests)


async def test_an_agent_calls_the_tools_of_a_server_in_this_process():
    async with set_up(make_env(tool_server_url="inprocess")) as env:
        group, backlog, _ = await collect(env)
        assert backlog == []
        assert group["scores"] == [1.0] * 4
        assert "Ask the oracle." in texts_of(env)
        assert env.runtime.executor.stats().calls_by_tool["oracle"] == 4
        assert env.runtime.backend.stats().acquired_total == 0


async def test_tools_of_a_server_are_offered_only_where_one_is_configured():
    async with set_up(make_env()) as env:
        await collect(env)
        assert "Ask the oracle." not in texts_of(env)
        assert env.runtime.executor.stats().errors_by_kind["unknown_tool"] == 4


async def test_a_server_that_goes_away_costs_no_agent_its_score(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agentenv_tools.external.tool_server._FIRST_PAUSE_S", 0.001)
    server = ToolServer([oracle], ServeSettings(token=TOKEN, stop_grace_s=0.1))
    async with serving(server) as url:
        env = make_env(tool_server_url=url, tool_server_token=TOKEN, policy_retry_limit=2)
        await env.setup()
    try:
        group, backlog, context = await collect(env)
        assert (group, backlog) == (None, [0])
        ended = [record for member in context.members for record in member.records]
        outcomes = {record.outcome for record in ended}
        assert outcomes <= {Outcome.INFRASTRUCTURE_FAILED, Outcome.CANCELLED}
        assert all(record.reward is None for record in ended)
        assert all(TOKEN not in str(record) for record in ended)
        port = int(url.rpartition(":")[2])
        again = ToolServer([oracle], ServeSettings(token=TOKEN, port=port, stop_grace_s=0.1))
        async with serving(again):
            group, backlog, _ = await collect(env)
            assert (group["scores"], backlog) == ([1.0] * 4, [])
    finally:
        await env.shutdown()


async def test_a_server_that_is_not_there_is_refused_at_setup_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        ToolServerClient.__init__, "__kwdefaults__", {"wire": None, "start_timeout_s": 0.1}
    )
    env = make_env(tool_server_url="http://127.0.0.1:1")
    with pytest.raises(ToolServerUnavailableError, match=r"127\.0\.0\.1:1"):
        await env.setup()
    assert env.runtime.backend.stats().hosts == 0


async def test_a_token_without_a_server_is_refused():
    with pytest.raises(ToolConfigError, match="tool_server_url is not"):
        await make_env(tool_server_token=TOKEN).setup()


def test_mcp_servers_are_part_of_the_configuration():
    config = AgentEnvConfig.model_validate(
        {"mcp_servers": {"git": {"command": "git-mcp", "env": {"TOKEN": "${GIT_TOKEN}"}}}}
    )
    assert config.mcp_servers["git"].command == "git-mcp"
    assert AgentEnvConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValidationError, match="either `command` or `url`"):
        AgentEnvConfig.model_validate({"mcp_servers": {"x": {}}})
