"""Calls under way, and the answers of late ones, so that a call sent twice runs once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentenv_tools.serving.answers import Answer, HttpError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

    from agentenv_tools.schema import ToolCall

_CANCEL_S = 5.0
"""How long a cancelled call may take to end."""
STOPPING = "stopping"
BUSY = "busy"
"""Kinds of 503 that mean the call has not run, so sending it again is safe."""


@dataclass(frozen=True, slots=True)
class CallTableLimits:
    """How much is remembered, and for how long."""

    max_under_way: int = 1_024
    max_kept: int = 4_096
    max_kept_bytes: int = 64_000_000
    keep_s: float = 120.0
    """A repetition comes within seconds; an id used again much later is a new call."""
    orphan_s: float = 2.0
    """How long a call goes on after its caller has left, who may have lost only the connection."""


@dataclass(eq=False, slots=True)
class _Entry:
    key: Hashable | None
    content: object
    task: asyncio.Task[Answer]
    waiters: int = 0
    orphan: asyncio.TimerHandle | None = None
    done_at: float = 0.0
    size: int = field(default=0)


class CallTable:
    """Runs each call as a task of its own.

    * Two requests with the same key and the same content share one run, also when the second comes
      after its end (while the answer is kept). A key with other content is another call.
    * A call whose callers have all left is cancelled: at once without a key, else a little later.
      Its key then answers that it was withdrawn: a call never runs a second time.
    """

    def __init__(self, limits: CallTableLimits | None = None) -> None:
        self._limits = limits or CallTableLimits()
        self._entries: dict[Hashable, _Entry] = {}
        self._running: set[_Entry] = set()
        self._finished: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._kept_bytes = 0
        self._stopping = False

    @property
    def under_way(self) -> int:
        """How many calls run or wait to."""
        return len(self._running)

    async def run(
        self,
        key: Hashable | None,
        content: object,
        work: Callable[[], Coroutine[Any, Any, Answer]],
    ) -> Answer:
        """The answer of `work`, or that of the earlier call with the same key and content (see `fingerprint`).

        Raises `HttpError` 503 when the service stops, is full, or withdrew the call.
        """
        self._forget_old()
        entry = self._entries.get(key) if key is not None else None
        if entry is None or entry.content != content:
            entry = self._start(key, content, work)
        return await self._follow(entry)

    def forget(self, of: Callable[[Hashable], bool]) -> None:
        """Let the answers of ended calls go whose keys `of` holds for: the same key is a new call then."""
        for key in [key for key in self._finished if of(key)]:
            self._drop(key)

    async def close(self, grace_s: float) -> None:
        """Take no more calls, let those under way end for `grace_s` seconds, then cancel them."""
        self._stopping = True
        tasks = {entry.task for entry in self._running}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_CANCEL_S)

    # ---- machinery ----

    def _start(
        self,
        key: Hashable | None,
        content: object,
        work: Callable[[], Coroutine[Any, Any, Answer]],
    ) -> _Entry:
        if self._stopping:
            raise HttpError(503, STOPPING, "the service is stopping; the call was not run")
        if len(self._running) >= self._limits.max_under_way:
            message = f"{len(self._running)} calls are under way already; the call was not run"
            raise HttpError(503, BUSY, message, {"retry-after": "1"})
        entry = _Entry(key, content, asyncio.create_task(work()))
        self._running.add(entry)
        if key is not None:
            self._drop(key)
            self._entries[key] = entry
        entry.task.add_done_callback(lambda _: self._ended(entry))
        return entry

    async def _follow(self, entry: _Entry) -> Answer:
        entry.waiters += 1
        if entry.orphan is not None:
            entry.orphan.cancel()
            entry.orphan = None
        try:
            await asyncio.wait({entry.task})
        finally:
            entry.waiters -= 1
            if entry.waiters == 0 and not entry.task.done():
                self._orphaned(entry)
        if entry.task.cancelled():
            raise HttpError(503, "withdrawn", "the call was cancelled before it ended")
        return entry.task.result()

    def _orphaned(self, entry: _Entry) -> None:
        if entry.key is None:
            entry.task.cancel()
        else:
            loop = asyncio.get_running_loop()
            entry.orphan = loop.call_later(self._limits.orphan_s, entry.task.cancel)

    def _ended(self, entry: _Entry) -> None:
        self._running.discard(entry)
        if entry.orphan is not None:
            entry.orphan.cancel()
        cancelled = entry.task.cancelled()
        failed = not cancelled and entry.task.exception() is not None
        entry.size = 0 if cancelled or failed else len(entry.task.result().body)
        entry.done_at = asyncio.get_running_loop().time()
        if entry.key is None or self._entries.get(entry.key) is not entry:
            return
        if failed:  # it was refused before it ran, or our own code is at fault: nothing to repeat
            del self._entries[entry.key]
            return
        self._finished[entry.key] = entry
        self._kept_bytes += entry.size
        self._forget_old()

    def _forget_old(self) -> None:
        limits = self._limits
        oldest = asyncio.get_running_loop().time() - limits.keep_s
        while self._finished:
            key, entry = next(iter(self._finished.items()))
            full = len(self._finished) > limits.max_kept or self._kept_bytes > limits.max_kept_bytes
            if not full and entry.done_at >= oldest:
                return
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self._entries.pop(key, None)
        if (entry := self._finished.pop(key, None)) is not None:
            self._kept_bytes -= entry.size


def fingerprint(call: ToolCall) -> bytes:
    """The same for the same content, whatever the order of keys."""
    content = json.dumps([call.name, call.arguments], sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16).digest()
