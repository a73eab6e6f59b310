"""What a tool server answers: the documented routes, over real sockets."""

import asyncio
from typing import Any

import aiohttp
import pytest

from agentenv_backends.errors import InfrastructureError
from agentenv_tools import (
    TerminalTool,
    Tool,
    ToolConfigError,
    ToolContext,
    ToolResult,
    ToolSchema,
    tool,
)
from agentenv_tools.schema import ImagePart
from agentenv_tools.serving import ServeSettings, ToolServer, serving
from agentenv_tools.serving import tool_server as module
from tests.agentenv_tools.serving.service_client import Client, shout, tool_server
from tests.waiting import WITHIN_S


class Runs:
    """A tool that waits until it is let go, and counts."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.tool = tool(self.hold)

    async def hold(self, note: str = "") -> str:
        """Wait."""
        self.started += 1
        self.most = max(self.most, self.started - self.ended)
        try:
            await self.gate.wait()
        finally:
            self.ended += 1
        return f"{note}{self.started}"

    async def has_started(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.started < count:
                await asyncio.sleep(0.005)

    async def has_ended(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.ended < count:
                await asyncio.sleep(0.005)


def execute(name: str, uniq_id: str = "1", **arguments: Any) -> dict[str, Any]:
    call = {"name": name, "arguments": arguments, "uniq_id": uniq_id}
    return {"trajectory_id": "t", "tool": call}


async def test_a_call_is_answered_with_every_documented_key():
    async with tool_server() as client:
        assert await client.post("/execute", execute("shout", "7", text="hi")) == (
            200,
            {"success": True, "output": "HI", "error": None, "metadata": {}, "uniq_id": "7"},
        )


async def test_tools_are_listed_as_openai_functions():
    async with tool_server() as client:
        _, listed = await client.get("/tools")
        assert listed["tools"] == [shout.schema.to_openai()]
        _, about = await client.get("/")
        assert about["max_concurrency"] == 16


async def test_what_a_tool_does_wrong_is_a_result():
    @tool
    async def boom() -> str:
        """Fail."""
        raise KeyError("inside")

    @tool
    async def leave() -> str:
        """As an argument parser does."""
        raise SystemExit(2)

    class Off(Tool[Any]):
        schema = ToolSchema("off", "Off.")

        def validate(self, arguments):
            return arguments

        async def run(self, arguments, ctx):
            raise AssertionError

        def is_available(self):
            return False, "no licence"

    async with tool_server(shout, boom, leave, Off()) as client:
        answers = {
            "boom": (await client.call("boom"))[1],
            "leave": (await client.call("leave"))[1],
            "off": (await client.call("off"))[1],
            "none": (await client.call("nope"))[1],
            "arguments": (await client.call("shout", text=5))[1],
        }
    assert not any(answer["success"] for answer in answers.values())
    assert answers["boom"]["error"] == "Tool execution error: KeyError: 'inside'"
    assert answers["leave"]["error"] == "Tool execution error: SystemExit: 2"
    assert answers["off"]["error"] == "Tool not available: off: no licence"
    assert answers["none"]["error"].startswith("Unknown tool: nope. Known tools: shout, boom")
    assert "text: Input should be a valid string" in answers["arguments"]["error"]


async def test_a_tool_that_reports_infrastructure_makes_no_result():
    @tool
    async def lost() -> str:
        """Lose the database."""
        raise InfrastructureError("the database is gone")

    async with tool_server(lost) as client:
        status, answer = await client.call("lost")
    assert status == 503
    assert answer["error"]["kind"] == "infrastructure"
    assert "database" in answer["error"]["message"]


async def test_a_tool_that_hangs_is_ended_at_its_deadline():
    runs = Runs()
    async with tool_server(runs.tool) as client:
        body = {**execute("hold"), "timeout_s": 0.01}  # clamped to a second
        status, answer = await client.post("/execute", body)
        assert (status, answer["success"]) == (200, False)
        assert answer["error"] == "Tool timed out after 1s"
        assert runs.ended == 1


async def test_context_goes_to_the_tools_that_name_it_and_to_no_model():
    @tool
    async def where(trajectory_id: str, slot_id: str = "none", ctx: ToolContext = None) -> str:  # type: ignore[assignment]
        """Say for whom.

        Args:
            trajectory_id: Who calls.
        """
        return f"{trajectory_id} {slot_id} {ctx.trajectory_id}"

    async with tool_server(where, shout) as client:
        schemas = {
            entry["function"]["name"]: entry["function"]["parameters"]
            for entry in (await client.get("/tools"))[1]["tools"]
        }
        assert schemas["where"] == {"type": "object", "properties": {}, "required": []}
        _, answer = await client.post("/execute", {**execute("where"), "slot_id": "s3"})
        assert answer["output"] == "t s3 t"
        _, forged = await client.post("/execute", execute("where", "2", trajectory_id="another's"))
        assert "trajectory_id: unknown argument" in forged["error"]
        _, other = await client.post("/execute", {**execute("shout", text="x"), "slot_id": "s"})
        assert other["success"]


async def test_a_tool_that_needs_a_sandbox_is_refused_at_start():
    with pytest.raises(ToolConfigError, match="sandbox"):
        ToolServer([TerminalTool()])
    with pytest.raises(ToolConfigError, match="at least one"):
        ToolServer([])
    with pytest.raises(ToolConfigError, match="two tools are named 'shout'"):
        ToolServer([shout, shout])


async def test_output_of_any_size_is_answered_within_bounds():
    @tool
    async def flood() -> ToolResult:
        """Answer a lot."""
        part = ImagePart("image/png", "AAAA", 1, 1)
        return ToolResult(
            True, "ab\ud800" * 2_000_000, metadata={"n": float("nan")}, images=(part,)
        )

    async with tool_server(flood) as client:
        status, answer = await client.call("flood")
    assert status == 200
    assert len(answer["output"]) < 1_100_000
    assert "bytes dropped" in answer["output"]
    assert answer["metadata"]["n"] == "NaN"
    assert answer["images"][0]["media_type"] == "image/png"


# ---- many at once ----


async def test_no_more_calls_run_at_once_than_allowed_and_all_get_their_turn():
    runs = Runs()
    async with tool_server(runs.tool, max_concurrency=3) as client:
        calls = [asyncio.create_task(client.call("hold")) for _ in range(20)]
        await runs.has_started(3)
        runs.gate.set()
        answers = await asyncio.gather(*calls)
    assert runs.most == 3
    assert all(answer["success"] for _, answer in answers)


async def test_a_call_whose_turn_does_not_come_is_refused_unrun(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_QUEUE_WAIT_S", 0.1)
    runs = Runs()
    async with tool_server(runs.tool, max_concurrency=1) as client:
        first = asyncio.create_task(client.call("hold", "1"))
        await runs.has_started(1)
        status, answer = await client.call("hold", "2")
        assert (status, answer["error"]["kind"], runs.started) == (503, "busy", 1)
        runs.gate.set()
        await first
        assert (await client.call("hold", "2"))[1]["success"]  # it was not remembered as run


# ---- a call runs once ----


async def test_a_repeated_call_runs_once_and_is_answered_each_time():
    runs = Runs()
    async with tool_server(runs.tool) as client:
        twice = [asyncio.create_task(client.call("hold", "a")) for _ in range(2)]
        await runs.has_started(1)
        runs.gate.set()
        answers = [answer["output"] for _, answer in await asyncio.gather(*twice)]
        answers.append((await client.call("hold", "a"))[1]["output"])
        assert answers == ["1", "1", "1"]
        assert (await client.call("hold", "b"))[1]["output"] == "2"
        assert (await client.call("hold", "a", note="other"))[1]["output"] == "other3"
        assert (await client.call("hold"))[1]["output"] == "4"
        other = {**execute("hold", "a"), "trajectory_id": "another"}
        assert (await client.post("/execute", other))[1]["output"] == "5"


async def test_a_caller_that_lost_its_connection_can_come_back_for_the_answer():
    runs = Runs()
    async with tool_server(runs.tool) as client:
        lost = asyncio.create_task(client.call("hold", "a"))
        await runs.has_started(1)
        lost.cancel()
        await asyncio.wait({lost})
        again = asyncio.create_task(client.call("hold", "a"))
        runs.gate.set()
        assert (await again)[1]["output"] == "1"
        assert runs.started == 1


async def test_a_call_without_an_id_ends_with_its_caller():
    runs = Runs()
    async with tool_server(runs.tool) as client:
        call = asyncio.create_task(client.call("hold"))
        await runs.has_started(1)
        call.cancel()
        await asyncio.wait({call})
        await runs.has_ended(1)
        assert (await client.get("/"))[1]["calls_under_way"] == 0


# ---- the end ----


async def test_stopping_lets_calls_end_and_then_ends_them():
    quick, stuck = Runs(), Runs()
    server = ToolServer(
        [tool(name="quick")(quick.hold), tool(name="stuck")(stuck.hold)],
        ServeSettings(stop_grace_s=0.5),
    )
    async with aiohttp.ClientSession(), serving(server) as url:
        client = Client(url)
        calls = [asyncio.create_task(client.call(name)) for name in ("quick", "stuck")]
        await asyncio.gather(quick.has_started(1), stuck.has_started(1))
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        status, refused = await client.call("quick")
        assert (status, refused["error"]["kind"]) == (503, "stopping")
        quick.gate.set()
        await closing
        answers = await asyncio.gather(*calls)
    assert answers[0][1]["output"] == "1"
    assert (answers[1][0], answers[1][1]["error"]["kind"]) == (503, "withdrawn")
    assert stuck.ended == 1
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.get("/health")


async def test_a_taken_port_is_refused_by_name():
    async with tool_server() as client:
        port = int(client.url.rpartition(":")[2])
        with pytest.raises(ToolConfigError, match=f":{port}: .*in use"):
            async with serving(ToolServer([shout], ServeSettings(port=port))):
                pass
