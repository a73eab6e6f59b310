"""MCP servers as processes: what a model reads, what is whose fault, and what is left behind."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentenv_tools import (
    ToolConfigError,
    ToolServerError,
    ToolServerProtocolError,
    ToolServerTimeoutError,
    ToolServerUnavailableError,
)
from agentenv_tools.errors import ToolArgumentsError
from agentenv_tools.external import McpServerConfig, mcp_session
from agentenv_tools.external.mcp_server import McpServer
from tests.agentenv_tools.external.contexts import Source, started
from tests.processes import alive, open_descriptors, process_of, running
from tests.waiting import WITHIN_S, eventually

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def fixture(**settings: Any) -> McpServer:
    script = str(HERE / "mcp_fixture.py")
    return McpServer("fix", McpServerConfig(command=sys.executable, args=[script], **settings))


def rogue(how: str, environ: dict[str, str] | None = None, **settings: Any) -> McpServer:
    script = [str(HERE / "mcp_rogue.py"), how]
    config = McpServerConfig(command=sys.executable, args=script, **settings)
    return McpServer("rogue", config, environ)


async def begun(mcp: Source, calls: int = 1) -> None:
    """Wait until the server works on that many slow calls."""
    async with asyncio.timeout(WITHIN_S):
        while int((await mcp.call("slow_calls")).output) < calls:
            pass


# ---- what a model reads ----


async def test_tools_are_offered_with_their_schemas_and_called():
    async with started(fixture(prefix="m_")) as mcp:
        schema = mcp.tools["m_add"].schema
        assert (schema.description, schema.required) == ("Add two numbers.", ["a", "b"])
        assert schema.parameters == {"a": {"type": "integer"}, "b": {"type": "integer"}}
        assert schema.external
        assert (await mcp.call("m_add", a=1, b=2)).output == "3"


async def test_a_tools_failure_and_refused_arguments_are_results():
    async with started(fixture()) as mcp:
        failed = await mcp.call("boom")
        refused = await mcp.call("add", a="x", b=1)
    assert not failed.success
    assert "it went wrong" in (failed.error or "")
    assert not refused.success
    assert "valid integer" in (refused.error or "")


async def test_arguments_that_are_no_json_never_reach_the_server():
    async with started(fixture()) as mcp:
        with pytest.raises(ToolArgumentsError, match="other half"):
            await mcp.call("note", text="\ud800")
        assert (await mcp.call("note", text="é\n\x00")).success


async def test_images_are_kept_beside_the_text():
    async with started(fixture()) as mcp:
        drawn = await mcp.call("draw_image")
    assert drawn.output.splitlines() == ["a dot:", "[image/png, 1 x 1 pixels, 73 bytes]"]
    assert [(image.media_type, image.width) for image in drawn.images] == [("image/png", 1)]


async def test_structured_content_is_shown_where_there_is_no_text():
    async with started(rogue("rich")) as mcp:
        assert (await mcp.call("act")).output == '{"sum": 5, "key": ""}'


async def test_output_of_any_size_is_cut_and_a_flood_fails_only_its_own_call():
    async with started(fixture()) as mcp:
        long = await mcp.call("big", size=1_000_000)
        assert long.success
        assert len(long.output) < 51_000
        assert "950000 of 1000000 bytes dropped" in long.output
        beside = asyncio.create_task(mcp.call("slow", seconds=0.2))
        flood = await mcp.call("big", size=9_000_000)
        assert not flood.success
        assert "more than 8000000 bytes" in (flood.error or "")
        assert (await beside).output == "done"


async def test_what_a_server_says_beside_answers_does_no_harm():
    async with started(rogue("chatter")) as mcp:
        assert (await mcp.call("act")).output == "fine"
        assert (await mcp.call("act")).output == "fine"


# ---- names and lists ----


async def test_every_page_of_the_list_is_read():
    async with started(rogue("pages")) as mcp:
        assert list(mcp.tools) == [f"tool_{page}" for page in range(5)]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("endless", ToolServerProtocolError, "without end"),
        ("laughs", ToolConfigError, "more than 20000 parts"),
        ("no start", ToolServerUnavailableError, "exit status 9; .*cannot find my database"),
        ("silent", ToolServerTimeoutError, "start_timeout_s=1"),
    ],
)
async def test_a_server_that_cannot_be_used_is_refused_at_start(
    how: str, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        async with started(rogue(how, start_timeout_s=1 if how == "silent" else 10)):
            pass


async def test_a_program_that_is_not_there_is_named():
    server = McpServer("x", McpServerConfig(command="no-such-program"))
    with pytest.raises(ToolServerUnavailableError, match=r"no-such-program: No such file"):
        async with started(server):
            pass


async def test_only_the_tools_asked_for_are_offered():
    async with started(fixture(tools=["add", "draw.image"])) as mcp:
        assert list(mcp.tools) == ["add", "draw_image"]
    with pytest.raises(ToolConfigError, match="has no tool 'sub'; it has: add, big"):
        async with started(fixture(tools=["sub"])):
            pass


# ---- whose fault ----


async def test_a_call_that_overruns_its_deadline_is_the_tools_doing_and_is_withdrawn():
    async with started(fixture()) as mcp:
        late = await mcp.call("slow", 1.0, seconds=60)
        assert (late.success, late.error) == (False, "Tool timed out after 1s")
        assert (await mcp.call("withdrawn")).output == "[60.0]"


async def test_a_server_that_answers_no_ping_either_is_at_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcp_session, "_PING_S", 0.3)
    async with started(fixture()) as mcp:
        with pytest.raises(ToolServerTimeoutError, match="neither a call nor a ping"):
            await mcp.call("block", 0.2, seconds=60)
        assert (await mcp.call("add", a=1, b=1)).output == "2"  # another was started


async def test_withdrawing_a_call_tells_the_server():
    async with started(fixture()) as mcp:
        call = asyncio.create_task(mcp.call("slow", seconds=600))
        await begun(mcp)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await mcp.call("withdrawn")).output == "[600.0]"


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("fails", ToolServerError, "error -32603: out of order"),
        ("malformed", ToolServerProtocolError, "malformed answer"),
        ("garbage", ToolServerUnavailableError, "no JSON-RPC message"),
        ("nameless flood", ToolServerUnavailableError, "more than 8000000 bytes"),
        ("mute", ToolServerUnavailableError, "closed its output"),
    ],
)
async def test_a_server_that_breaks_the_protocol_makes_no_result(
    how: str, error: type[Exception], message: str
):
    async with started(rogue(how)) as mcp:
        with pytest.raises(error, match=message):
            await mcp.call("act")


async def test_arguments_a_server_refuses_by_protocol_are_a_result():
    async with started(rogue("refuses")) as mcp:
        refused = await mcp.call("act")
        assert (refused.success, refused.error) == (False, "no such colour")


async def test_a_crash_fails_the_calls_under_way_and_the_next_call_finds_a_new_server():
    async with started(fixture()) as mcp:
        under_way = [asyncio.create_task(mcp.call("slow", seconds=60)) for _ in range(20)]
        assert (await mcp.call("add", a=1, b=1)).success
        with pytest.raises(ToolServerUnavailableError, match=r"exit status 3; .*last words"):
            await mcp.call("die")
        ends = await asyncio.gather(*under_way, return_exceptions=True)
        assert all(isinstance(end, ToolServerUnavailableError) for end in ends)
        again = await asyncio.gather(*(mcp.call("add", a=n, b=1) for n in range(10)))
        assert [result.output for result in again] == [str(n + 1) for n in range(10)]


async def test_a_server_killed_in_mid_call_is_noticed_at_once():
    async with started(fixture()) as mcp:
        pid, _ = (int(part) for part in (await mcp.call("pids")).output.split())
        call = asyncio.create_task(mcp.call("slow", seconds=600))
        await begun(mcp)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ToolServerUnavailableError, match="exit status 137"):
            await call
        assert (await mcp.call("add", a=1, b=1)).output == "2"
        _, guard = (int(part) for part in (await mcp.call("pids")).output.split())
        call = asyncio.create_task(mcp.call("slow", seconds=600))
        await begun(mcp)
        os.kill(guard, signal.SIGKILL)
        with pytest.raises(ToolServerUnavailableError, match="is gone"):
            await call
        assert (await mcp.call("add", a=1, b=1)).output == "2"


async def test_a_server_that_fails_again_and_again_is_left_alone_for_a_while():
    async with started(fixture(restart_limit=1)) as mcp:
        for _ in range(2):
            with pytest.raises(ToolServerUnavailableError, match="is gone"):
                await mcp.call("die")
        for _ in range(2):
            with pytest.raises(
                ToolServerUnavailableError, match="2 times in a row and is left alone"
            ):
                await mcp.call("add", a=1, b=1)
        mcp.source._sessions._try_again_at = 0  # half a minute later
        assert (await mcp.call("add", a=1, b=1)).output == "2"


async def test_a_server_that_works_in_between_is_not_given_up():
    async with started(fixture(restart_limit=1)) as mcp:
        for _ in range(3):
            with pytest.raises(ToolServerUnavailableError):
                await mcp.call("die")
            assert (await mcp.call("add", a=1, b=1)).success


# ---- one session for each trajectory ----


async def test_trajectories_share_a_server_unless_they_are_to_have_their_own():
    async with started(fixture()) as mcp:
        await mcp.call("note", text="a", _trajectory="one")
        assert (await mcp.call("note", text="b", _trajectory="two")).output == "a,b"
    async with started(fixture(scope="trajectory")) as mcp:
        await mcp.call("note", text="a", _trajectory="one")
        assert (await mcp.call("note", text="b", _trajectory="two")).output == "b"
        assert (await mcp.call("note", text="c", _trajectory="one")).output == "a,c"
        pid = int((await mcp.call("pids", _trajectory="one")).output.split()[0])
        await mcp.source.release("one")
        assert not running(pid)
        assert (await mcp.call("note", text="d", _trajectory="two")).output == "b,d"


async def test_a_trajectorys_session_that_is_lost_stays_lost():
    async with started(fixture(scope="trajectory")) as mcp:
        for call in ("die", "add"):
            with pytest.raises(ToolServerUnavailableError, match="is gone"):
                await mcp.call(call, **({"a": 1, "b": 1} if call == "add" else {}))
        assert (await mcp.call("add", _trajectory="another", a=1, b=1)).success


# ---- what a server is given, and what is shown of it ----


async def test_a_server_gets_a_few_variables_of_ours_and_those_it_was_given():
    environ = {"PATH": os.environ["PATH"], "API_KEY": "sk-123456", "OTHER": "x", "HOME": "/h"}
    config = McpServerConfig(
        command=sys.executable,
        args=[str(HERE / "mcp_fixture.py")],
        env={"KEY": "Key ${API_KEY}", "MODE": "test"},
        tools=["environment"],
    )
    async with started(McpServer("x", config, environ)) as mcp:
        found = json.loads((await mcp.call("environment")).output)
    assert {"KEY", "MODE", "HOME", "PATH"} <= found.keys()
    assert found["MODE"] == "test"
    assert found["KEY"] == "Key ***"  # it has the key; what it answers does not show it
    assert "OTHER" not in found
    assert "API_KEY" not in found


async def test_a_secret_that_is_not_set_is_refused_at_start():
    with pytest.raises(ToolConfigError, match=r"mcp_servers.rogue.env: .* NOWHERE is not set"):
        rogue("rich", {}, env={"SECRET": "${NOWHERE}"})


async def test_a_secret_shows_in_no_result():
    server = rogue("rich", {**os.environ, "S": "sesame-1"}, env={"SECRET": "${S}"})
    async with started(server) as mcp:
        assert (await mcp.call("act")).output == '{"sum": 5, "key": "***"}'


# ---- the end ----


@pytest.mark.parametrize("secret", ["one-half+another-half", "-----BEGIN-----\nfirst\nsecond\n"])
async def test_a_secret_in_a_servers_last_words_shows_neither_cut_nor_joined(secret: str):
    server = rogue("blurts", {"SECRET": secret}, env={"SECRET": "${SECRET}"})
    with pytest.raises(ToolServerUnavailableError, match="exit status 9; its last words") as caught:
        async with started(server):
            pass
    assert not any(part in str(caught.value) for part in ("half", "second", "BEGIN"))


async def test_a_server_that_lingers_and_what_it_started_are_ended(monkeypatch: pytest.MonkeyPatch):
    from agentenv_tools.external import mcp_stdio

    monkeypatch.setattr(mcp_stdio, "_LEAVE_S", 0.2)
    async with started(rogue("lingers")):
        pass  # `started` looks for what is left
    async with started(fixture()) as mcp:
        child = process_of(int((await mcp.call("spawn")).output))
        assert child.alive
    await eventually(lambda: not child.alive, "the end of what a server started")


async def test_closing_in_the_middle_of_calls_leaves_nothing():
    async with started(fixture()) as mcp:
        calls = [asyncio.create_task(mcp.call("slow", seconds=600)) for _ in range(10)]
        await begun(mcp, 10)
        await mcp.source.close()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, ToolServerUnavailableError) for end in ends)
        with pytest.raises(ToolServerUnavailableError, match="closed"):
            await mcp.call("add", a=1, b=1)


async def test_being_cancelled_while_starting_leaves_nothing():
    async with started(fixture()) as mcp:
        slow = rogue("silent")
        starting = asyncio.create_task(slow.start())
        await asyncio.sleep(0.3)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await slow.close()
        assert (await mcp.call("add", a=1, b=1)).success


DRIVER = """
import asyncio, sys
from agentenv_tools.external import McpServerConfig
from agentenv_tools.external.mcp_server import McpServer
from tests.agentenv_tools.external.contexts import context

async def main():
    server = McpServer("x", McpServerConfig(command=sys.executable, args=[sys.argv[1]]))
    tools = {tool.schema.name: tool for tool in await server.start()}
    pids = (await tools["pids"].run({}, context())).output.split()
    child = (await tools["spawn"].run({}, context())).output
    print(*pids, child, flush=True)
    await tools["slow"].run({"seconds": 600}, context(600))

asyncio.run(main())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
async def test_when_the_driver_dies_so_do_its_servers_and_all_they_started(end: signal.Signals):
    root = Path(__file__).parents[3]
    paths = [str(root / part) for part in ("", "backends", "tools", "environments")]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(HERE / "mcp_fixture.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=root,
    )
    with driver:
        assert driver.stdout is not None
        line = await asyncio.to_thread(driver.stdout.readline)
        processes = [process_of(int(part)) for part in line.split()]
        assert len(processes) == 3
        driver.send_signal(end)
        await eventually(lambda: not alive(processes), "the end of all that the driver started")
        driver.wait(WITHIN_S)


async def test_many_calls_at_once_are_all_answered():
    async with started(fixture()) as mcp:
        results = await asyncio.gather(*(mcp.call("add", a=n, b=n) for n in range(256)))
        assert [result.output for result in results] == [str(2 * n) for n in range(256)]


async def test_being_cancelled_at_any_moment_leaves_no_process_and_no_descriptor():
    rng = random.Random(1)
    before = open_descriptors()
    async with started(fixture(scope="trajectory")) as mcp:

        async def trajectory(number: int) -> None:
            name = f"t{number}"
            try:
                async with asyncio.timeout(rng.random() * 1.5):
                    await mcp.call("slow", seconds=0.3, _trajectory=name)
            except (TimeoutError, ToolServerError):
                pass
            finally:
                await mcp.source.release(name)

        for _ in range(3):
            await asyncio.gather(*(trajectory(number) for number in range(4)))
    assert open_descriptors() == before
