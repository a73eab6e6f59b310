"""Backends that break a promise each, so that the checks can be seen to find it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from agentenv_backends.base import Slot, SlotState
from agentenv_backends.conformance import backend_from_config
from agentenv_backends.requests import ExecRequest, KillRequest, ReadRequest, WriteRequest
from agentenv_backends.results import Capture, ExecResult, ExecStatus, OpFailure, ReadResult

LOCAL = {"type": "local", "slots": 4, "warm_slots": 1, "disk_mb": 32, "memory_mb": 128}


class Sound:
    """A local backend, as it is."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Forgetful(Sound):
    """Hands the same slot out again and again, as its last holder left it."""

    _slot: Slot | None = None

    async def acquire(self, trajectory_id: str, *, timeout_s: float | None = None) -> Slot:
        if self._slot is None:
            self._slot = await self._inner.acquire(trajectory_id, timeout_s=timeout_s)
        return self._slot

    async def release(self, slot: Slot, *, reset_workspace: bool = True) -> None:
        await asyncio.sleep(0)


class Merging(Sound):
    """Puts standard error into standard output."""

    async def execute(self, slot: Slot, request: Any) -> Any:
        answer = await self._inner.execute(slot, request)
        if isinstance(answer, ExecResult):
            both = answer.stdout.head + answer.stderr.head
            return replace(answer, stdout=Capture(both, b"", len(both)), stderr=Capture(b""))
        return answer


class Raw(Sound):
    """Says of no command that it ran too long."""

    async def execute(self, slot: Slot, request: Any) -> Any:
        answer = await self._inner.execute(slot, request)
        if isinstance(answer, ExecResult) and answer.status is ExecStatus.TIMED_OUT:
            return replace(answer, status=ExecStatus.EXITED, exit_code=124)
        return answer


class Twice(Sound):
    """Runs every command a second time, as a careless retry would."""

    async def execute(self, slot: Slot, request: Any) -> Any:
        if isinstance(request, ExecRequest) and ">>" in request.command:
            await self._inner.execute(slot, request)
        return await self._inner.execute(slot, request)


class Open(Sound):
    """Reads files by a shell, wherever they are."""

    async def execute(self, slot: Slot, request: Any) -> Any:
        if not isinstance(request, ReadRequest):
            return await self._inner.execute(slot, request)
        answer = await self._inner.execute(slot, ExecRequest(f"cat -- '{request.path}'"))
        content = answer.stdout.head
        return ReadResult(content, len(content), truncated=False)


class Torn(Sound):
    """Writes files in two halves."""

    async def execute(self, slot: Slot, request: Any) -> Any:
        if not isinstance(request, WriteRequest) or len(request.content) < 2:
            return await self._inner.execute(slot, request)
        half = len(request.content) // 2
        first = replace(request, content=request.content[:half])
        rest = replace(request, content=request.content[half:], append=True)
        answer = await self._inner.execute(slot, first)
        if isinstance(answer, OpFailure):
            return answer
        answer = await self._inner.execute(slot, rest)
        return replace(answer, bytes_written=len(request.content))


class Merciful(Sound):
    """Kills nothing when asked to."""

    async def execute(self, slot: Slot, request: Any) -> Any:
        if isinstance(request, KillRequest):
            request = ExecRequest("true")
        return await self._inner.execute(slot, request)


class Careless(Sound):
    """Lets a released slot be used and released again."""

    async def release(self, slot: Slot, *, reset_workspace: bool = True) -> None:
        if slot.state is SlotState.ACQUIRED:
            await self._inner.release(slot)


KINDS = {
    kind.__name__: kind
    for kind in (Sound, Forgetful, Merging, Raw, Twice, Open, Torn, Merciful, Careless)
}


def make(kind: str) -> Any:
    """The factory."""
    return KINDS[kind](backend_from_config(**LOCAL))
