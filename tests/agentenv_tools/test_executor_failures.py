"""What the sandbox does wrong never becomes an answer; functions that use the sandbox."""

import asyncio
import threading

import pytest

from agentenv_backends.base import Slot
from agentenv_backends.errors import (
    HostLostError,
    InfrastructureError,
    SandboxTimeoutError,
    SlotLostError,
)
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import (
    ExecRequest,
    ReadRequest,
    Request,
    WriteRequest,
)
from agentenv_backends.results import ReadResult, Result
from agentenv_backends.settings import Limits, PoolSettings
from agentenv_backends.testing import (
    FakeProvider,
    Faults,
)
from agentenv_tools import (
    ToolCall,
    ToolContext,
    ToolError,
    ToolExecutor,
    ToolExecutorConfig,
    build_registry,
    tool,
)
from agentenv_tools.testing import fake_executor, in_virtual_time
from tests.agentenv_tools.calls import now, sh

# ---- what the sandbox does wrong ----


@in_virtual_time
async def test_a_lost_slot_raises_and_stays_lost_until_release():
    async with fake_executor() as run:
        await run.executor.execute("t", sh("echo x > f"))
        (host,) = run.provider.live.values()
        running_call = asyncio.create_task(run.executor.execute("t", sh("sleep 10")))
        queued = asyncio.create_task(run.executor.execute("t", sh("true")))
        await asyncio.sleep(1)
        host.lose_slot(next(name for name, slot in host.slots.items() if slot.requests))
        with pytest.raises(SlotLostError) as first:
            await running_call
        for call in (
            queued,
            run.executor.execute("t", sh("cat f")),
            run.executor.execute("t", ToolCall("x")),
        ):
            with pytest.raises(SlotLostError) as later:
                await call
            assert later.value is first.value
        assert (await run.executor.execute("neighbour", sh("true"))).success
        await run.executor.release_trajectory("t")
        assert not (await run.executor.execute("t", sh("cat f"))).success


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(slot_lost=1.0), SlotLostError),
        (Faults(host_lost=1.0), HostLostError),
        (Faults(exec_hangs=1.0), SandboxTimeoutError),
    ],
)
def test_an_infrastructure_failure_is_never_a_result(faults, expected):
    @tool
    async def careless(ctx: ToolContext) -> str:
        try:
            await ctx.execute(ExecRequest("true"))
        except Exception:  # noqa: BLE001 - the carelessness under test
            return "swallowed"
        raise AssertionError("the sandbox works")

    @in_virtual_time
    async def test():
        for call in (sh("true"), ToolCall("read_file", {"path": "a"}), ToolCall("careless")):
            async with fake_executor(careless, provider=FakeProvider(faults=faults)) as run:
                with pytest.raises(expected):
                    await run.executor.execute("t", call)
                with pytest.raises(expected):
                    await run.executor.execute("t", ToolCall("nope"))

    test()


class OddPool(SlotPool):
    """A backend that breaks its contract in one method: it hangs, or raises what it may not."""

    def __init__(self, broken: str, error: Exception | None) -> None:
        super().__init__(FakeProvider(), PoolSettings(limits=Limits(slots_per_host=4)))
        self._broken = broken
        self._error = error

    async def _misbehave(self, method: str) -> None:
        if method == self._broken and self._error is not None:
            raise self._error
        if method == self._broken:
            await asyncio.get_running_loop().create_future()

    async def acquire(
        self, trajectory_id: str, *, timeout_s: float | None = None, profile: str | None = None
    ) -> Slot:
        await self._misbehave("acquire")
        return await super().acquire(trajectory_id, timeout_s=timeout_s)

    async def execute(self, slot: Slot, request: Request) -> Result:
        await self._misbehave("execute")
        return await super().execute(slot, request)

    async def release(self, slot: Slot, *, reset_workspace: bool = True) -> None:
        await super().release(slot, reset_workspace=reset_workspace)
        await self._misbehave("release")


@pytest.mark.parametrize("error", [None, RuntimeError("bug")])
@pytest.mark.parametrize("broken", ["acquire", "execute"])
def test_a_backend_that_hangs_or_breaks_is_an_infrastructure_failure_all_the_same(broken, error):
    @in_virtual_time
    async def test():
        async with OddPool(broken, error) as pool:
            config = ToolExecutorConfig(acquire_timeout_s=3.0)
            executor = ToolExecutor(pool, build_registry(), config)
            with pytest.raises(InfrastructureError) as caught:
                await executor.execute("t", sh("true"))
            assert (error is None) == isinstance(caught.value, TimeoutError)
            await executor.close()
            assert executor.stats().in_flight == pool.stats().acquired_slots == 0

    test()


@pytest.mark.parametrize("error", [None, RuntimeError("bug")])
def test_a_release_that_fails_is_counted_and_ends_nothing(error):
    @in_virtual_time
    async def test():
        async with OddPool("release", error) as pool:
            executor = ToolExecutor(pool, build_registry())
            await executor.execute("t", sh("true"))
            await executor.release_trajectory("t")
            assert executor.stats().cleanup_failures == 1

    test()


# ---- function tools with a slot ----


@in_virtual_time
async def test_a_function_works_in_the_trajectorys_slot():
    @tool
    async def save(text: str, ctx: ToolContext) -> str:
        await ctx.execute(WriteRequest("saved", text.encode()))
        result = await ctx.execute(ReadRequest("saved"))
        assert isinstance(result, ReadResult)
        return f"{ctx.trajectory_id}: {result.content.decode()}"

    async with fake_executor(save) as run:
        assert (await run.executor.execute("t", ToolCall("save", {"text": "x"}))).output == "t: x"
        assert (await run.executor.execute("t", sh("cat saved"))).output == "x"


@in_virtual_time
async def test_a_functions_own_time_is_limited_and_its_commands_get_what_is_left():
    @tool
    async def work(ctx: ToolContext) -> str:
        await asyncio.sleep(6)
        await ctx.execute(ExecRequest("sleep 100", timeout_s=60))
        await asyncio.sleep(1)
        return "too late"

    async with fake_executor(work) as run:
        result = await run.executor.execute("t", ToolCall("work"), 10)
        assert result.error == "Tool timed out after 10s"
        assert now() == 10.0
        ((request,),) = run.requests()
        assert isinstance(request, ExecRequest)
        assert request.timeout_s == 4.0


@in_virtual_time
async def test_waiting_for_a_slot_is_not_counted_against_a_function():
    @tool
    async def work(ctx: ToolContext) -> str:
        first, second = ctx.execute(ExecRequest("sleep 2")), ctx.execute(ExecRequest("sleep 2"))
        await asyncio.gather(first, second)
        return f"{ctx.remaining_s():.0f}"

    async with fake_executor(work, slots=1, acquire_timeout_s=1000.0) as run:
        await run.executor.execute("holder", sh("true"))
        call = asyncio.create_task(run.executor.execute("t", ToolCall("work"), 10))
        await asyncio.sleep(100)
        await run.executor.release_trajectory("holder")
        assert (await call).output == "6"


@in_virtual_time
async def test_a_context_is_dead_once_its_call_has_ended():
    kept = []

    @tool
    async def keep(ctx: ToolContext) -> None:
        kept.append(ctx)

    async with fake_executor(keep) as run:
        await run.executor.execute("t", ToolCall("keep"))
        with pytest.raises(ToolError, match="after the call had ended"):
            await kept[0].execute(ExecRequest("true"))


async def test_a_sync_function_that_never_ends_is_left_behind_at_its_deadline():
    gate = threading.Event()

    @tool
    def hang() -> None:
        gate.wait(30)

    async with fake_executor(hang) as run:
        try:
            result = await run.executor.execute("t", ToolCall("hang"), 1)
        finally:
            gate.set()
        assert result.error == "Tool timed out after 1s"
        assert (await run.executor.execute("t", sh("echo on"))).success
