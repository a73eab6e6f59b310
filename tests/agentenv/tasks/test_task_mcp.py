"""MCP servers of tasks: which are connected, for whom, and which are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agentenv.outcomes import StopReason
from agentenv.tasks import TaskAgent, TaskUnsupportedError, oracle_agent, run_task
from agentenv.tasks.agents import NoSession
from agentenv.tasks.models import EnvironmentTable
from agentenv.tasks.task_mcp import mcp_servers_of
from agentenv.types import AgentResult, AgentStep
from agentenv_tools.schema import ToolCall
from tests.agentenv.tasks.task_dirs import LOCAL, write_task
from tests.agentenv_tools.external.test_mcp_http import http_fixture

if TYPE_CHECKING:
    from agentenv.harness import AgentClock
    from agentenv.session import Session
    from agentenv.task import ExecTool, Task

WEB = {"name": "web", "transport": "streamable-http", "url": "https://tools.example.org/mcp"}


def servers_of(provider: str = "docker", **changes: Any) -> dict[str, Any]:
    environment = {key: value for key, value in changes.items() if key.startswith(("net", "allow"))}
    server = {**WEB, **{key: value for key, value in changes.items() if key not in environment}}
    table = EnvironmentTable.model_validate({**environment, "mcp_servers": [server]})
    return mcp_servers_of(table, provider, {"TOOL_KEY": "secret"})


def test_a_server_with_an_address_is_a_session_for_each_run():
    (config,) = servers_of(headers={"Authorization": "${TOOL_KEY}"}).values()
    assert (config.url, config.scope) == (WEB["url"], "trajectory")
    assert config.headers == {"Authorization": "secret"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transport": "sse"}, "transport sse is not offered"),
        ({"transport": "stdio", "command": "x", "url": None}, "transport stdio is not offered"),
        ({"network_mode": "no-network"}, "which the task has none of"),
        ({"network_mode": "allowlist", "allowed_hosts": ["a.b"]}, "tools.example.org is not in allowed_hosts"),
        ({"url": "http://localhost:80/mcp"}, "the sandbox itself"),
        ({"url": "http://127.0.0.1/mcp", "provider": "modal"}, "the sandbox itself"),
        ({"url": "ftp://x"}, "give an address"),
        ({"headers": {"X-Key": "${NOT_SET}"}}, "NOT_SET"),
    ],
)  # fmt: skip
def test_what_cannot_be_connected_is_refused(changes, reason):
    with pytest.raises(TaskUnsupportedError, match=reason):
        servers_of(**changes)


def test_listed_hosts_may_be_connected():
    for rule in ("tools.example.org", "*.example.org"):
        assert servers_of(network_mode="allowlist", allowed_hosts=[rule])


class _Adding:
    """Has a server add two numbers, and writes the sum."""

    async def run(
        self, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        said = await exec_tool(ToolCall("add", {"a": 40, "b": 2}))
        await exec_tool(ToolCall("terminal", {"command": f"echo {said.output} > answer.txt"}))
        steps = (AgentStep(step_number=1, assistant_message=said.output),)
        return AgentResult(
            success=True,
            final_response=said.output,
            stop_reason=StopReason.FINAL_ANSWER,
            steps=steps,
        )


@pytest.mark.slow
@pytest.mark.sandbox
async def test_an_agent_that_calls_tools_has_those_of_the_tasks_server(tmp_path):
    told: list[str] = []

    def session(request: Any) -> NoSession:
        told.extend(schema.name for schema in request.schemas)
        return NoSession()

    async with http_fixture() as (url, _):
        toml = LOCAL.replace("no-network", "public")
        toml += f'[[environment.mcp_servers]]\nname = "web"\ntransport = "http"\nurl = "{url}"\n'
        task = write_task(tmp_path / "t", toml)
        agent = TaskAgent("adding", _Adding(), session)
        result = await run_task(task, agent=agent, provider="local", output_dir=tmp_path)
    assert (result.error, result.reward) == (None, 1.0)
    assert {"add", "terminal"} <= set(told)
    # One without tools needs no server; one with tools that does not answer is the sandbox's failure.
    options: dict[str, Any] = {"provider": "local", "output_dir": tmp_path}
    assert (await run_task(task, agent=oracle_agent(), **options)).reward == 1.0
    gone = await run_task(task, agent=agent, **options)
    assert gone.exception_info is not None
    assert gone.exception_info.exception_type == "ToolServerUnavailableError"
    assert not gone.counts
