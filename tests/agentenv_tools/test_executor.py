"""What calls answer, what they may set, and what is counted: over fake hosts, in virtual time."""

import asyncio
import json
from typing import Any

import pytest

from agentenv_backends.base import Capabilities
from agentenv_backends.errors import (
    CapabilityError,
)
from agentenv_backends.requests import (
    ExecRequest,
    KillRequest,
    WriteRequest,
)
from agentenv_backends.results import ArchiveResult, ListResult, OpFailure, ReadResult
from agentenv_backends.testing import (
    FakeProvider,
    fake_pool,
)
from agentenv_tools import (
    NoActiveSlotError,
    ToolCall,
    ToolConfigError,
    ToolExecutor,
    ToolExecutorConfig,
    ToolRegistry,
    ToolResult,
    ToolSchema,
    build_registry,
    tool,
)
from agentenv_tools.base import Tool
from agentenv_tools.testing import fake_executor, in_virtual_time
from tests.agentenv_tools.calls import sh

# ---- answers ----


@in_virtual_time
async def test_a_call_runs_in_the_trajectorys_slot_and_answers_with_its_id():
    async with fake_executor() as run:
        call = sh("echo hi")
        assert await run.executor.execute("t", call) == ToolResult(
            success=True, output="hi\n", metadata={"exit_code": 0}, uniq_id=call.uniq_id
        )


@in_virtual_time
async def test_files_persist_between_the_calls_of_a_trajectory_and_not_beyond_it():
    async with fake_executor(slots=1) as run:
        await run.executor.execute("a", sh("echo mine > note"))
        assert (await run.executor.execute("a", sh("cat note"))).output == "mine\n"
        await run.executor.release_trajectory("a")
        assert not (await run.executor.execute("b", sh("cat note"))).success


@pytest.mark.parametrize(
    ("call", "error", "kind"),
    [
        (ToolCall("nope"), "Unknown tool: nope. Known tools: terminal", "unknown_tool"),
        (ToolCall("x", error="Malformed: y"), "Malformed: y", "malformed"),
        (ToolCall("terminal"), "Invalid arguments for terminal: command: req", "invalid_arguments"),
        (sh("ls", extra=1), "extra: unknown argument", "invalid_arguments"),
        (sh("ls", timeout="soon"), "timeout: must be a number", "invalid_arguments"),
        (sh("ls", timeout=True), "timeout: must be a number", "invalid_arguments"),
        (sh("ls", timeout=float("nan")), "timeout: must be a number", "invalid_arguments"),
        (sh("ls", timeout=10**400), "timeout: must be a number", "invalid_arguments"),
        (sh("ls", background=True), "background commands are not supported", "invalid_arguments"),
        (sh("exit 3"), "Exit code: 3", "failed"),
        (sh("sleep 100", timeout=5), "Command timed out after 5s", "failed"),
        (ToolCall("read_file", {"path": "none"}), "no such file", "failed"),
        (ToolCall("off"), "Tool not available: off: no licence", "unavailable"),
        (ToolCall("outside"), "External tool not available (ToolServer not", "unavailable"),
        (ToolCall("boom"), "Tool execution error: KeyError: 'b'", "raised"),
        (ToolCall("boom_sync"), "Tool execution error: ValueError: s", "raised"),
        (ToolCall("timing_out"), "Tool execution error: TimeoutError: own", "raised"),
        (ToolCall("odd_type"), "Tool execution error: TypeError: odd_type returned str", "raised"),
        (ToolCall("cancels_itself"), "something the tool waited for was cancelled", "raised"),
        (ToolCall("slow"), "Tool timed out after 30s", "timed_out"),
        (ToolCall("slow", {"timeout": 2}), "Tool timed out after 2s", "timed_out"),
    ],
)
def test_what_an_agent_does_wrong_is_a_result_it_can_read(call, error, kind):
    @in_virtual_time
    async def test():
        async with fake_executor(*odd_tools()) as run:
            result = await run.executor.execute("t", call)
            assert (result.success, result.uniq_id) == (False, call.uniq_id)
            assert error in (result.error or "")
            assert run.executor.stats().errors_by_kind == {kind: 1}
            assert (await run.executor.execute("t", sh("echo on"))).success

    test()


def odd_tools() -> list[Tool[Any]]:
    class Off(Tool[None]):
        schema = ToolSchema("off", "Never there.")

        def validate(self, arguments):
            return None

        async def run(self, arguments, ctx):
            raise AssertionError("not available")

        def is_available(self):
            return False, "no licence"

    class OddType(Off):
        schema = ToolSchema("odd_type", "Returns text.")

        async def run(self, arguments, ctx):
            return "text"

        def is_available(self):
            return True, None

    class Outside(Off):
        schema = ToolSchema("outside", "Elsewhere.", external=True)

    @tool
    async def boom() -> None:
        raise KeyError("b")

    @tool
    def boom_sync() -> None:
        raise ValueError("s")

    @tool
    async def timing_out() -> None:
        raise TimeoutError("own")

    @tool
    async def cancels_itself() -> None:
        other = asyncio.ensure_future(asyncio.sleep(9))
        other.cancel()
        await other

    @tool
    async def slow() -> None:
        await asyncio.sleep(1000)

    return [Off(), OddType(), Outside(), boom, boom_sync, timing_out, cancels_itself, slow]


@in_virtual_time
async def test_metadata_of_a_tool_is_made_fit_for_json():
    @tool
    async def odd() -> ToolResult:
        return ToolResult(success=True, metadata={"a": float("nan"), "b": object, "c": {1}})

    async with fake_executor(odd) as run:
        result = await run.executor.execute("t", ToolCall("odd"))
        payload = json.loads(result.to_json(), parse_constant=pytest.fail)
        assert payload["metadata"] == {"a": "NaN", "b": str(object), "c": [1]}


# ---- policy ----


@pytest.mark.parametrize(
    ("given", "asked", "used"),
    [
        (None, None, 30),
        (None, 7, 7),
        (None, "7", 7),
        (None, 2.5, 2.5),
        (None, 0, 1),
        (None, -3, 1),
        (None, 10_000, 600),
        (12, 7, 12),
        (0, None, 1),
        (9999, None, 600),
    ],
)
def test_the_timeout_is_the_callers_else_the_models_else_the_default_and_clamped(
    given, asked, used
):
    @in_virtual_time
    async def test():
        async with fake_executor() as run:
            for name in ("terminal", "bash"):
                arguments = {"command": "true"} | ({} if asked is None else {"timeout": asked})
                result = await run.executor.execute("t", ToolCall(name, arguments), given)
                assert result.success
            ((first, second),) = run.requests()
            assert first == second == ExecRequest("true", timeout_s=used)

    test()


@in_virtual_time
async def test_policy_arguments_of_a_model_are_taken_out():
    async with fake_executor() as run:
        policy = {
            "allow_network": True,
            "require_sandbox": False,
            "require_stateful_sandbox": False,
        }
        assert (await run.executor.execute("t", sh("true", **policy))).success
        assert run.requests() == [[ExecRequest("true")]]


@in_virtual_time
async def test_a_function_that_declares_timeout_gets_it_as_an_argument():
    @tool
    async def fetch(timeout: int) -> str:
        await asyncio.sleep(20)
        return f"{timeout}"

    async with fake_executor(fetch) as run:
        assert (await run.executor.execute("t", ToolCall("fetch", {"timeout": 5}))).output == "5"


@pytest.mark.parametrize(
    ("config", "capabilities"),
    [
        ({"allow_network": False}, Capabilities("bubblewrap", False, True, True, True)),
        ({"require_sandbox": True}, Capabilities("none", True, True, True, True)),
        ({"require_stateful_sandbox": True}, Capabilities("bubblewrap", True, True, True, True)),
        (
            {"require_stateful_sandbox": True},
            Capabilities("none", True, True, True, True, stateful_terminals=True),
        ),
    ],
)
def test_a_backend_that_cannot_hold_the_policy_is_refused_at_start_and_at_the_first_call(
    config, capabilities
):
    @in_virtual_time
    async def test():
        async with fake_pool(FakeProvider(capabilities=capabilities)) as pool:
            executor = ToolExecutor(pool, build_registry(), ToolExecutorConfig(**config))
            with pytest.raises(CapabilityError, match=next(iter(config))):
                await executor.start()
            with pytest.raises(CapabilityError):
                await executor.execute("t", sh("true"))
            assert pool.stats().acquired_slots == 0

    test()


@in_virtual_time
async def test_a_backend_that_holds_the_policy_is_accepted():
    offered = Capabilities("bubblewrap", True, True, True, True, stateful_terminals=True)
    config = ToolExecutorConfig(
        allow_network=False, require_sandbox=True, require_stateful_sandbox=True
    )
    async with fake_executor(provider=FakeProvider(capabilities=offered), config=config) as run:
        assert (await run.executor.execute("t", sh("true"))).success


@pytest.mark.parametrize(
    "values",
    [
        {"tool_server_token": "secret"},
        {"batch_window_ms": -1},
        {"max_batch_size": 0},
        {"default_timeout_s": 0.5},
        {"default_timeout_s": 601},
        {"acquire_timeout_s": -1},
        {"release_timeout_s": float("nan")},
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(values):
    with pytest.raises(ToolConfigError, match=next(iter(values))):
        ToolExecutorConfig(**values)


# ---- hooks and artifacts ----


@in_virtual_time
async def test_hooks_send_requests_in_turn_with_the_calls():
    async with fake_executor() as run:
        call = asyncio.create_task(run.executor.execute("t", sh("sleep 3")))
        await asyncio.sleep(0)
        await run.executor.execute_request("t", WriteRequest("f", b"x"))
        assert call.done()
        assert run.executor.stats().total_requests == 1


@in_virtual_time
async def test_quiesce_kills_what_is_left_in_a_slot_and_needs_none():
    async with fake_executor() as run:
        assert await run.executor.quiesce("t") == 0
        assert run.pool.stats().acquired_total == 0
        await run.executor.execute("t", sh("true"))
        assert await run.executor.quiesce("t") == 0
        assert run.requests() == [[ExecRequest("true"), KillRequest()]]


@in_virtual_time
async def test_artifacts_are_read_from_the_trajectorys_slot_and_need_one():
    async with fake_executor() as run:
        for helper in (
            run.executor.read_artifact("t", "f"),
            run.executor.list_artifacts("t"),
            run.executor.archive_artifacts("t"),
        ):
            with pytest.raises(NoActiveSlotError, match="trajectory t holds no slot"):
                await helper
        await run.executor.execute("t", sh("echo x > f"))
        content = await run.executor.read_artifact("t", "f", max_bytes=1)
        assert content == ReadResult(b"x", 2, truncated=True)
        listing = await run.executor.list_artifacts("t")
        assert isinstance(listing, ListResult)
        assert [entry.path for entry in listing.entries] == ["f"]
        assert isinstance(await run.executor.archive_artifacts("t"), ArchiveResult)
        assert isinstance(await run.executor.read_artifact("t", "none"), OpFailure)


# ---- counting ----


@in_virtual_time
async def test_calls_are_counted_by_tool_latency_and_outcome():
    async with fake_executor() as run:
        for call in (
            sh("sleep 2"),
            sh("exit 1"),
            ToolCall("bash", {"command": "true"}),
            ToolCall("x"),
        ):
            await run.executor.execute("t", call)
        stats = run.executor.stats()
        assert stats.calls_by_tool == {"terminal": 2, "bash": 1}
        assert (stats.total_requests, stats.total_errors) == (4, 2)
        assert (stats.total_latency_s, stats.mean_latency_s) == (2.0, 0.5)


@in_virtual_time
async def test_calls_made_together_leave_together_and_a_burst_is_bounded():
    config = ToolExecutorConfig(max_batch_size=10)
    async with fake_executor(slots=100, config=config) as run:
        names = [f"t{n}" for n in range(100)]
        await asyncio.gather(*(run.executor.execute(name, sh("true")) for name in names))
        before = run.executor.stats()
        await asyncio.gather(*(run.executor.execute(name, sh("true")) for name in names))
        after = run.executor.stats()
        assert after.batched_requests - before.batched_requests == 100
        assert after.batches - before.batches == 10
        assert after.mean_batch_size > 1
        await run.executor.execute("t1", sh("true"))
        await asyncio.sleep(0)
        assert run.executor.stats().batches == after.batches + 1
        assert ToolExecutor(None, ToolRegistry()).stats().mean_batch_size == 0.0  # type: ignore[arg-type]


@in_virtual_time
async def test_commands_start_in_the_trajectorys_working_folder_unless_they_name_one():
    async with fake_executor() as run:
        await run.executor.prepare("t", sh("true"))
        await run.executor.execute("t", sh("true"), working_dir="repo")
        await run.executor.execute("t", ToolCall("write_file", {"path": "a", "content": "b"}))
        placed, written = run.requests()[0]
        assert placed == ExecRequest("true", cwd="repo")
        assert written == WriteRequest("a", b"b")


@in_virtual_time
async def test_preparing_takes_the_slot_a_call_will_need_and_no_other():
    async with fake_executor() as run:
        await run.executor.prepare("a", ToolCall("nothing"))
        await run.executor.prepare("b", ToolCall("terminal", error="malformed"))
        await run.executor.prepare("c", sh("true"))
        await run.executor.prepare("c", sh("true"))
        assert run.pool.stats().acquired_slots == 1


@in_virtual_time
async def test_a_limit_shortens_any_deadline_and_lengthens_none():
    async with fake_executor() as run:
        await run.executor.execute("t", sh("true", timeout=500), limit_s=50)
        await run.executor.execute("t", sh("true", timeout=7), limit_s=50)
        await run.executor.execute("t", sh("true"), limit_s=0.2)
        asked = [request.timeout_s for request in run.requests()[0]]  # type: ignore[union-attr]
        assert asked == [50, 7, 1]
