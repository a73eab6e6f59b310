"""Fakes for tests of whatever runs on a backend: hosts in memory, with scripted answers and faults.

    provider = FakeProvider(faults=Faults(seed=7, slot_lost=0.05))
    async with fake_pool(provider, slots=4) as pool: ...

A fake slot has files and a toy shell (`echo`, `cat`, `sleep`, `exit`, `true`, `false`); give
`on_exec` to script anything else. Together with `run_in_virtual_time`, ten thousand schedules with
slow, hanging and dying sandboxes run in seconds, each from its seed.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from agentenv_backends._fake_files import file_tool
from agentenv_backends._fake_slot import FakeSlot, exec_result, file_operation, toy_shell
from agentenv_backends._fake_snapshots import FakeSnapshots
from agentenv_backends._virtual_time import DeadlockError, run_in_virtual_time
from agentenv_backends.base import Capabilities
from agentenv_backends.errors import (
    HostLostError,
    HostStartError,
    SlotExhaustedError,
    SlotLostError,
)
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import (
    ExecRequest,
    KillRequest,
    RecordingRequest,
    ShellRequest,
    TmuxRequest,
)
from agentenv_backends.results import (
    ExecResult,
    ExecStatus,
)
from agentenv_backends.settings import Limits, PoolSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from agentenv_backends.host import Leftover
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result

T = TypeVar("T")

__all__ = [
    "DeadlockError",
    "FakeHost",
    "FakeProvider",
    "FakeSlot",
    "Faults",
    "exec_result",
    "fake_pool",
    "run_in_virtual_time",
]


@dataclass(frozen=True, slots=True)
class Faults:
    """How often what goes wrong: probabilities per call, drawn from `seed`. Latencies in seconds."""

    seed: int = 0
    launch_fails: float = 0.0
    launch_hangs: float = 0.0
    open_fails: float = 0.0
    open_hangs: float = 0.0
    close_fails: float = 0.0
    close_hangs: float = 0.0
    snapshot_fails: float = 0.0
    """Any step with a snapshot; so do hangs."""
    snapshot_hangs: float = 0.0
    exec_hangs: float = 0.0
    """The sandbox never answers, though the command's deadline passes."""
    slot_lost: float = 0.0
    """The slot dies under a request."""
    host_lost: float = 0.0
    """The host dies under a request."""
    host_freezes: float = 0.0
    """From this request on the host answers nothing at all, health checks included."""
    latency_s: tuple[float, float] = (0.0, 0.0)
    """Every call on a host takes a time between these, in seconds."""


if TYPE_CHECKING:
    ExecScript = Callable[[FakeSlot, ExecRequest], ExecResult | Awaitable[ExecResult]]


class FakeHost:
    """A `Host` in memory. Its methods beside those of the protocol make things go wrong on
    purpose.
    """

    def __init__(self, host_id: str, provider: FakeProvider) -> None:
        self.host_id = host_id
        self.slots: dict[str, FakeSlot] = {}
        self.snapshots = FakeSnapshots()
        self.transfers: list[str] = []
        """Snapshots that were fetched from here or put here, in order: `fetch ID`, `put ID`."""
        self.gone: str | None = None
        """Why the host is no more."""
        self.frozen = False
        self.pings = 0
        self._provider = provider
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._slot_lost: dict[str, asyncio.Future[SlotLostError]] = {}
        self._tell_host_lost: Callable[[str], None] | None = None
        self._tell_slot_lost: Callable[[str, SlotLostError], None] | None = None

    # --- Faults on purpose -----------------------------------------------------------------------

    def lose(self, reason: str = "killed by the test") -> None:
        """Die, as by SIGKILL."""
        if self.gone is None:
            self._die(reason)
            if self._tell_host_lost is not None:
                self._tell_host_lost(reason)

    def lose_slot(
        self, slot_id: str, reason: str = "killed by the test", *, exhausted: bool = False
    ) -> None:
        """Let one slot die, as by SIGKILL of its init; `exhausted`: by using up its own memory."""
        if self.slots.pop(slot_id, None) is None:
            return
        kind = SlotExhaustedError if exhausted else SlotLostError
        error = kind(f"slot {slot_id} is gone: {reason}")
        self._slot_lost.pop(slot_id).set_result(error)
        if self._tell_slot_lost is not None:
            self._tell_slot_lost(slot_id, error)

    def freeze(self) -> None:
        """Answer nothing any more, as under SIGSTOP."""
        self.frozen = True

    def _die(self, reason: str) -> None:
        self.gone = reason
        self.slots.clear()
        self.snapshots.kept.clear()
        if not self._lost.done():
            self._lost.set_result(reason)

    # --- `Host` ----------------------------------------------------------------------------------

    def on_slot_lost(self, callback: Callable[[str, SlotLostError], None]) -> None:
        """See `Host.on_slot_lost`."""
        self._tell_slot_lost = callback

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """See `Host.on_lost`."""
        self._tell_host_lost = callback

    async def open_slot(self, slot_id: str) -> None:
        """See `Host.open_slot`. Raises `AssertionError` for an id that was used before."""
        await self._answer("open")
        assert slot_id not in self._provider.slot_ids, f"slot id {slot_id} was used twice"
        self._provider.slot_ids.add(slot_id)
        self.slots[slot_id] = FakeSlot(slot_id)
        self._slot_lost[slot_id] = asyncio.get_running_loop().create_future()

    def workspace_dir(self, slot_id: str) -> str:
        """See `Host.workspace_dir`."""
        assert slot_id in self.slots
        return "/workspace"

    async def close_slot(self, slot_id: str) -> None:
        """See `Host.close_slot`."""
        await self._answer("close")
        self.slots.pop(slot_id, None)
        lost = self._slot_lost.pop(slot_id, None)
        if lost is not None:
            lost.set_result(SlotLostError(f"slot {slot_id} is gone: it was closed"))

    async def ping(self) -> None:
        """See `Host.ping`."""
        await self._answer("ping")
        self.pings += 1

    async def close(self) -> None:
        """See `Host.close`."""
        await asyncio.sleep(self._provider.draw_latency())
        self._die("closed")
        self._provider.live.pop(self.host_id, None)

    async def execute(self, slot_id: str, request: Request) -> Result:
        """See `Host.execute`."""
        slot = await self._slot(slot_id)
        slot.requests.append(request)
        return await self._while_it_lives(self._work(slot, request), self._slot_lost[slot_id])

    async def take_snapshot(self, slot_id: str, snapshot_id: str) -> None:
        """See `Host.take_snapshot`."""
        slot = await self._slot(slot_id)

        async def take() -> None:
            async with slot.turn:
                self._have_an_accident(slot)
                slot.terminals.end()
                self.snapshots.take(snapshot_id, slot.files)
                await self._answer("snapshot")

        await self._while_it_lives(take(), self._slot_lost[slot_id])

    async def restore_snapshot(self, slot_id: str, snapshot_id: str) -> None:
        """See `Host.restore_snapshot`. Raises `AssertionError` for a slot that was used before."""
        slot = await self._slot(slot_id)

        async def restore() -> None:
            async with slot.turn:
                assert not slot.requests, f"slot {slot_id} was used before"
                self._have_an_accident(slot)
                slot.files = self.snapshots.files(snapshot_id)
                await self._answer("snapshot")

        await self._while_it_lives(restore(), self._slot_lost[slot_id])

    async def fetch_snapshot(self, snapshot_id: str) -> bytes:
        """See `Host.fetch_snapshot`."""
        self.transfers.append(f"fetch {snapshot_id}")
        await self._while_it_lives(self._answer("snapshot"))
        return self.snapshots.pack(snapshot_id)

    async def put_snapshot(self, snapshot_id: str, archive: bytes) -> None:
        """See `Host.put_snapshot`."""
        self.transfers.append(f"put {snapshot_id}")
        self.snapshots.unpack(snapshot_id, archive)
        await self._while_it_lives(self._answer("snapshot"))

    async def drop_snapshot(self, snapshot_id: str) -> None:
        """See `Host.drop_snapshot`."""
        await self._while_it_lives(self._answer("snapshot"))
        self.snapshots.drop(snapshot_id)

    async def _slot(self, slot_id: str) -> FakeSlot:
        slot = self.slots.get(slot_id)
        if slot is None:
            await self._answer("exec")
            raise SlotLostError(f"slot {slot_id} does not exist")
        return slot

    async def _while_it_lives(
        self, work: Coroutine[Any, Any, T], slot_lost: asyncio.Future[SlotLostError] | None = None
    ) -> T:
        """What `work` gives, or the error of the host or slot that went meanwhile."""
        task = asyncio.ensure_future(work)
        ends: set[asyncio.Future[Any]] = {task, self._lost, *([slot_lost] if slot_lost else [])}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            await asyncio.wait({task})
        if self._lost.done():
            raise HostLostError(self._lost.result())
        if slot_lost is not None and slot_lost.done():
            raise slot_lost.result()
        return task.result()

    async def _work(self, slot: FakeSlot, request: Request) -> Result:
        async with slot.turn:
            self._have_an_accident(slot)
            await self._answer("exec")
            if isinstance(request, ExecRequest):
                return await self._exec(slot, request)
            answer = await self._terminal_operation(slot, request)
            return answer or file_tool(slot.files, request) or file_operation(slot, request)

    async def _terminal_operation(self, slot: FakeSlot, request: Request) -> Result | None:
        match request:
            case ShellRequest():
                return await slot.terminals.shell(request, lambda exe: self._exec(slot, exe))
            case TmuxRequest():
                return await slot.terminals.tmux(request)
            case RecordingRequest():
                return slot.terminals.recorded()
            case KillRequest():
                slot.terminals.end()
        return None

    def _have_an_accident(self, slot: FakeSlot) -> None:
        provider = self._provider
        if provider.strikes("slot_lost"):
            self.lose_slot(slot.slot_id, "an accident")
        if provider.strikes("host_lost"):
            self.lose("an accident")
        if provider.strikes("host_freezes"):
            self.freeze()

    async def _exec(self, slot: FakeSlot, request: ExecRequest) -> ExecResult:
        try:
            async with asyncio.timeout(request.timeout_s):
                result = self._provider.on_exec(slot, request)
                return await result if inspect.isawaitable(result) else result
        except TimeoutError:
            return exec_result(exit_code=137, status=ExecStatus.TIMED_OUT)

    async def _answer(self, operation: str) -> None:
        """Take the time an answer takes, or fail, or never come back."""
        if self.frozen or self._provider.strikes(f"{operation}_hangs"):
            await asyncio.get_running_loop().create_future()
        if self.gone is None:
            await asyncio.sleep(self._provider.draw_latency())
        if self.gone is not None:
            raise HostLostError(self.gone)
        if self._provider.strikes(f"{operation}_fails"):
            raise SlotLostError(f"{operation} failed by chance")


class FakeProvider:
    """A `HostProvider` of `FakeHost`s. `live` and `slot_ids` show what was started and is left."""

    def __init__(
        self,
        *,
        on_exec: ExecScript | None = None,
        faults: Faults | None = None,
        launch_s: float = 0.0,
        capabilities: Capabilities | None = None,
    ) -> None:
        self.on_exec: ExecScript = on_exec or toy_shell
        self.faults = faults or Faults()
        self.launch_s = launch_s
        self.capabilities = capabilities or Capabilities(
            "none", False, False, False, False, snapshot=True
        )
        self.fail_launches: list[Exception] = []
        """Errors of the launches to come, first one first."""
        self.live: dict[str, FakeHost] = {}
        """Hosts that were launched and not closed."""
        self.launches = 0
        self.slot_ids: set[str] = set()
        """Every slot id ever opened."""
        self._random = random.Random(self.faults.seed)  # noqa: S311 - faults, not secrets

    async def prepare(self) -> Capabilities:
        """See `HostProvider.prepare`."""
        return self.capabilities

    async def launch(self, host_id: str) -> FakeHost:
        """See `HostProvider.launch`."""
        self.launches += 1
        if self.strikes("launch_hangs"):
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self.launch_s + self.draw_latency())
        if self.fail_launches:
            raise self.fail_launches.pop(0)
        if self.strikes("launch_fails"):
            raise HostStartError(f"host {host_id} failed by chance")
        host = self.live[host_id] = FakeHost(host_id, self)
        return host

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """See `HostProvider.sweep`. Nothing in memory is ever left behind."""
        return ()

    def strikes(self, fault: str) -> bool:
        """Whether `fault`, a field of `Faults`, happens now."""
        chance: float = getattr(self.faults, fault, 0.0)
        return chance > 0 and self._random.random() < chance

    def draw_latency(self) -> float:
        """How long the next call takes."""
        return self._random.uniform(*self.faults.latency_s)


def fake_pool(
    provider: FakeProvider | None = None,
    *,
    slots: int = 4,
    min_hosts: int = 1,
    max_hosts: int = 1,
    warm_slots: int = 1,
    single_use_hosts: bool = False,
    **settings: Any,
) -> SlotPool:
    """A pool over fake hosts. `settings` are those of `PoolSettings` beside its limits."""
    limits = Limits(
        slots_per_host=slots,
        min_hosts=min_hosts,
        max_hosts=max_hosts,
        warm_slots=warm_slots,
        single_use_hosts=single_use_hosts,
    )
    return SlotPool(provider or FakeProvider(), PoolSettings(limits=limits, **settings))
