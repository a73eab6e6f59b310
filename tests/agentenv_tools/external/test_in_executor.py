"""External tools through the executor: no slot, the trajectory's order, failures that are never scores."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentenv_tools import (
    ToolCall,
    ToolConfigError,
    ToolExecutor,
    ToolExecutorConfig,
    ToolServerError,
    TrajectoryReleasedError,
    build_registry,
    tool,
)
from agentenv_tools.external import McpServerConfig
from agentenv_tools.serving import ServeSettings, ToolServer, serving
from agentenv_tools.testing import NullBackend, fake_executor
from tests.processes import descendants


@tool
async def outside(seconds: float = 0.0) -> str:
    """Do it elsewhere."""
    await asyncio.sleep(seconds)
    return "from outside"


@tool
def terminal(command: str) -> str:
    """Not the sandbox's."""
    return command


@asynccontextmanager
async def with_server(*tools: Any):
    """A fake executor that is connected to a real tool server."""
    server = ToolServer(tools, ServeSettings(token="the-token", stop_grace_s=0.1))
    async with serving(server) as url:
        config = ToolExecutorConfig(tool_server_url=url, tool_server_token="the-token")
        async with fake_executor(config=config, slots=1) as run:
            yield run


async def test_an_external_tool_takes_no_slot():
    async with with_server(outside) as run:
        call = ToolCall("outside", {})
        await run.executor.prepare("t", call)
        result = await run.executor.execute("t", call)
        assert (result.output, result.uniq_id) == ("from outside", call.uniq_id)
        assert run.pool.stats().acquired_total == 0


async def test_it_waits_its_turn_in_its_trajectory_and_for_no_other():
    async with with_server(outside) as run:
        order = []

        async def call(trajectory: str, name: str, seconds: float) -> None:
            await run.executor.execute(trajectory, ToolCall("outside", {"seconds": seconds}))
            order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(call("a", "a-slow", 0.5))
            await asyncio.sleep(0)
            group.create_task(call("a", "a-quick", 0))
            group.create_task(call("b", "b-quick", 0))
        assert order == ["b-quick", "a-slow", "a-quick"]


async def test_the_calls_deadline_is_kept_by_the_server():
    async with with_server(outside) as run:
        call = ToolCall("outside", {"seconds": 60, "timeout": 1})
        result = await run.executor.execute("t", call)
        assert (result.success, result.error) == (False, "Tool timed out after 1s")


async def test_a_server_that_is_gone_is_an_exception_and_costs_no_other_trajectory():
    server = ToolServer([outside], ServeSettings(stop_grace_s=0.1))
    async with serving(server) as url:
        run_context = fake_executor(config=ToolExecutorConfig(tool_server_url=url))
        run = await run_context.__aenter__()
    try:
        with pytest.raises(ToolServerError):
            await run.executor.execute("t", ToolCall("outside", {}))
        assert (await run.executor.execute("u", ToolCall("terminal", {"command": "true"}))).success
        assert run.executor.stats().total_failures == 1
    finally:
        await run_context.__aexit__(None, None, None)


async def test_two_tools_of_one_name_are_refused_with_both_origins():
    with pytest.raises(
        ToolConfigError,
        match=r"'terminal': one of the environment's own tools, one of the tool server http",
    ):
        async with with_server(terminal):
            pass


async def test_a_tool_server_can_live_in_this_process():
    config = ToolExecutorConfig(tool_server_url="inprocess")
    executor = ToolExecutor(NullBackend(), build_registry(), config, served_tools=[outside])
    await executor.start()
    try:
        calls = [executor.execute(f"t{n}", ToolCall("outside", {})) for n in range(64)]
        assert {result.output for result in await asyncio.gather(*calls)} == {"from outside"}
        late = await executor.execute("t", ToolCall("outside", {"seconds": 60, "timeout": 1}))
        assert late.error == "Tool timed out after 1s"
    finally:
        await executor.close()


def test_a_server_in_this_process_needs_tools():
    config = ToolExecutorConfig(tool_server_url="inprocess")
    with pytest.raises(ToolConfigError, match="build_server_tools"):
        ToolExecutor(NullBackend(), build_registry(), config)


def test_an_address_that_is_none_is_refused_at_once():
    with pytest.raises(ToolConfigError, match="tool_server_url"):
        ToolExecutor(NullBackend(), build_registry(), ToolExecutorConfig(tool_server_url="x"))


def test_a_token_is_not_shown():
    config = ToolExecutorConfig(tool_server_url="http://x", tool_server_token="hunter2")
    assert "hunter2" not in repr(config)


@pytest.mark.slow
async def test_mcp_tools_are_called_and_their_trajectorys_session_ends_with_it():
    script = str(Path(__file__).parent / "mcp_fixture.py")
    mcp = McpServerConfig(
        command=sys.executable, args=[script], scope="trajectory", tools=["note", "add"]
    )
    config = ToolExecutorConfig(mcp_servers={"fix": mcp})
    async with fake_executor(config=config) as run:
        for trajectory, text in (("a", "x"), ("b", "y"), ("a", "z")):
            call = ToolCall("note", {"text": text})
            await run.executor.prepare(trajectory, call)
            result = await run.executor.execute(trajectory, call)
        assert result.output == "x,z"
        await run.executor.release_trajectory("a")
        again = await run.executor.execute("a", ToolCall("note", {"text": "new"}))
        assert again.output == "new"


@pytest.mark.slow
async def test_a_session_that_opens_after_its_trajectory_was_released_is_closed():
    script = str(Path(__file__).parent / "mcp_fixture.py")
    mcp = McpServerConfig(command=sys.executable, args=[script], scope="trajectory")
    config = ToolExecutorConfig(mcp_servers={"fix": mcp})
    processes = descendants(os.getpid())
    async with fake_executor(config=config) as run:
        preparing = asyncio.create_task(run.executor.prepare("t", ToolCall("note", {})))
        await asyncio.sleep(0)
        await run.executor.release_trajectory("t")
        with pytest.raises(TrajectoryReleasedError):
            await preparing
        assert descendants(os.getpid()) <= processes


@pytest.mark.slow
async def test_two_servers_with_tools_of_one_name_are_refused():
    script = str(Path(__file__).parent / "mcp_fixture.py")
    one = McpServerConfig(command=sys.executable, args=[script], tools=["add"])
    config = ToolExecutorConfig(mcp_servers={"one": one, "two": one})
    with pytest.raises(
        ToolConfigError,
        match=r"'add': one of the MCP server 'one', one of the MCP server 'two'; .*prefix",
    ):
        async with fake_executor(config=config):
            pass
    two = one.model_copy(update={"prefix": "two_"})
    async with fake_executor(
        config=ToolExecutorConfig(mcp_servers={"one": one, "two": two})
    ) as run:
        result = await run.executor.execute("t", ToolCall("two_add", {"a": 1, "b": 2}))
        assert result.output == "3"
