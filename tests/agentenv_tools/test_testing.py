"""The shipped helps for tests and measurements."""

import pytest

from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from agentenv_tools import ToolCall, tool
from agentenv_tools.testing import NullBackend, fake_executor, in_virtual_time, measure_executor


@in_virtual_time
async def test_a_fake_run_shows_what_the_slots_were_asked():
    async with fake_executor() as run:
        await run.executor.execute("t", ToolCall("bash", {"command": "true"}))
        assert run.requests() == [[ExecRequest("true")]]


@in_virtual_time
async def test_a_fake_slot_knows_its_commands_as_programs_too():
    async with fake_executor() as run:
        await run.executor.execute("t", ToolCall("bash", {"command": "echo a > f"}))
        shown = await run.executor.execute_request("t", ExecRequest(("cat", "f")))
        arguments = await run.executor.execute_request("t", ExecRequest(("echo", "a  b", ">", "g")))
    assert isinstance(shown, ExecResult)
    assert shown.stdout.text() == "a\n"
    assert isinstance(arguments, ExecResult)
    assert arguments.stdout.text() == "a  b > g\n"


@in_virtual_time
async def test_a_tool_name_that_is_taken_is_refused_by_a_fake_run_too():
    @tool(name="terminal")
    async def other() -> None: ...

    with pytest.raises(ValueError, match="two tools are named 'terminal'"):
        async with fake_executor(other):
            raise AssertionError("not reached")


async def test_measuring_runs_every_call_and_gives_positive_rates():
    speed = await measure_executor(trajectories=3, calls_each=5)
    assert speed.calls_per_s > 0
    assert speed.backend_calls_per_s > 0
    assert isinstance(speed.overhead_us, float)


async def test_the_null_backend_answers_batches_and_has_no_slots_to_run_out_of():
    backend = NullBackend()
    await backend.start()
    slot = await backend.acquire("t")
    first, second = await backend.execute_batch(
        [(slot, ExecRequest("a")), (slot, ExecRequest("b"))]
    )
    assert first == second
    await backend.release(slot)
    await backend.stop()
    assert backend.stats().waiting == 0
