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
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    ArchiveRequest,
    ExecRequest,
    KillRequest,
    ListRequest,
    ReadRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    ArchiveResult,
    Capture,
    Entry,
    ExecResult,
    ExecStatus,
    FailureKind,
    KillResult,
    ListResult,
    OpFailure,
    ReadResult,
    WriteResult,
)
from agentenv_backends.settings import Limits, PoolSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result

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


@dataclass(slots=True)
class FakeSlot:
    """A workspace in memory."""

    slot_id: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


if TYPE_CHECKING:
    ExecScript = Callable[[FakeSlot, ExecRequest], ExecResult | Awaitable[ExecResult]]


def exec_result(
    stdout: str | bytes = b"",
    *,
    stderr: str | bytes = b"",
    exit_code: int = 0,
    status: ExecStatus = ExecStatus.EXITED,
) -> ExecResult:
    """What a command did, in short."""

    def capture(stream: str | bytes) -> Capture:
        data = stream.encode() if isinstance(stream, str) else stream
        return Capture(head=data, total_bytes=len(data))

    return ExecResult(status, exit_code, capture(stdout), capture(stderr), duration_s=0.0)


class FakeHost:
    """A `Host` in memory. Its methods beside those of the protocol make things go wrong on
    purpose.
    """

    def __init__(self, host_id: str, provider: FakeProvider) -> None:
        self.host_id = host_id
        self.slots: dict[str, FakeSlot] = {}
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
        slot = self.slots.get(slot_id)
        if slot is None:
            await self._answer("exec")
            raise SlotLostError(f"slot {slot_id} does not exist")
        slot.requests.append(request)
        work = asyncio.ensure_future(self._work(slot, request))
        slot_lost = self._slot_lost[slot_id]
        ends: set[asyncio.Future[Any]] = {work, slot_lost, self._lost}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            await asyncio.wait({work})
        if self._lost.done():
            raise HostLostError(self._lost.result())
        if slot_lost.done():
            raise slot_lost.result()
        return work.result()

    async def _work(self, slot: FakeSlot, request: Request) -> Result:
        async with slot.turn:
            self._have_an_accident(slot)
            await self._answer("exec")
            if isinstance(request, ExecRequest):
                return await self._exec(slot, request)
            return _file_operation(slot, request)

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
        self.capabilities = capabilities or Capabilities("none", False, False, False, False)
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

    async def sweep(self) -> int:
        """See `HostProvider.sweep`."""
        return 0

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
    **settings: Any,
) -> SlotPool:
    """A pool over fake hosts. `settings` are those of `PoolSettings` beside its limits."""
    limits = Limits(slots_per_host=slots, min_hosts=min_hosts, max_hosts=max_hosts)
    return SlotPool(provider or FakeProvider(), PoolSettings(limits=limits, **settings))


# --- What fake slots do --------------------------------------------------------------------------


async def toy_shell(slot: FakeSlot, request: ExecRequest) -> ExecResult:
    """A shell that knows six commands, and `echo ... > file`."""
    command, _, target = request.command.partition(">")
    words = shlex.split(command) or ["true"]
    if words[0] == "sleep":
        await asyncio.sleep(float(words[1]))
    if words[0] in {"sleep", "true"}:
        return exec_result()
    if words[0] == "echo":
        return _echo(slot, " ".join(words[1:]) + "\n", target.strip())
    if words[0] == "cat" and words[1] in slot.files:
        return exec_result(slot.files[words[1]])
    if words[0] in {"exit", "false", "cat"}:
        return exec_result(exit_code=int(words[1]) if words[0] == "exit" else 1)
    return exec_result(stderr=f"{words[0]}: command not found\n", exit_code=127)


def _echo(slot: FakeSlot, text: str, target: str) -> ExecResult:
    if not target:
        return exec_result(text)
    slot.files[target] = text.encode()
    return exec_result()


def _file_operation(slot: FakeSlot, request: Request) -> Result:
    match request:
        case WriteRequest(path, content, append):
            slot.files[path] = slot.files.get(path, b"") + content if append else content
            return WriteResult(len(content))
        case ReadRequest(path, offset, max_bytes) if path in slot.files:
            data = slot.files[path]
            part = data[offset : offset + max_bytes]
            return ReadResult(part, len(data), truncated=offset + len(part) < len(data))
        case ListRequest(_, _, limit):
            entries = [
                Entry(path, "file", len(slot.files[path]), 0.0) for path in sorted(slot.files)
            ]
            return ListResult(tuple(entries[:limit]), truncated=len(entries) > limit)
        case ArchiveRequest(_, archive_format):
            return ArchiveResult(repr(slot.files).encode(), archive_format, len(slot.files))
        case KillRequest():
            return KillResult(0)
        case _:
            return OpFailure(FailureKind.NOT_FOUND, f"no such file: {getattr(request, 'path', '')}")
