"""A slot in the hands of its holder: its legal states, and what is under way in it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from agentenv_backends._deadlines import Deadlines
from agentenv_backends.base import Slot, SlotState
from agentenv_backends.errors import InfrastructureError, SandboxTimeoutError, SlotStateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentenv_backends.host import Host

T = TypeVar("T")

_log = logging.getLogger(__name__)

SIGN_OF_LIFE_S = 0.8
"""How long a host may take to show that it is there, once a call has passed its deadline. A round trip takes
milliseconds, across an ocean a third of a second; so calls on a host that vanished end within a second after their
deadlines."""
_LOOKS = 2
"""A driver that stood still has not read the answer yet when the first of these is over, but has at the second."""

_LEGAL_STEPS = {
    SlotState.AVAILABLE: {SlotState.ACQUIRED, SlotState.LOST},
    SlotState.ACQUIRED: {SlotState.RELEASING, SlotState.LOST},
    SlotState.RELEASING: {SlotState.AVAILABLE, SlotState.LOST},
    SlotState.LOST: set[SlotState](),
}


def advance(slot: Slot, state: SlotState) -> None:
    """Take `slot` to `state`. Raises `SlotStateError` when that is no legal step."""
    if state not in _LEGAL_STEPS[slot.state]:
        raise SlotStateError(f"slot {slot.slot_id} cannot go from {slot.state} to {state}")
    slot.state = state


class _Call:
    """What is under way in the task that made this, which can be interrupted there as by a timeout."""

    __slots__ = ("_earlier_cancellations", "_has_ended", "_task", "doubts", "interrupted", "why")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a lease is used in a task"
        self._task = task
        self._earlier_cancellations = task.cancelling()
        self._has_ended = False
        self.interrupted = False
        self.why = ""
        """What became of it, when it was interrupted for being late."""
        self.doubts: asyncio.Task[None] | None = None
        """Asks the host for signs of life, once this is late."""

    def interrupt(self, why: str = "") -> None:
        """Cancel what is under way, unless it has ended."""
        if not self._has_ended and not self.interrupted:
            self.interrupted, self.why = True, why
            self._task.cancel()

    def end(self) -> bool:
        """Whether a cancellation was this interruption, and nobody else's too. False when called again."""
        if self._has_ended:
            return False
        self._has_ended = True
        if self.doubts is not None:
            self.doubts.cancel()
        return self.interrupted and self._task.uncancel() <= self._earlier_cancellations


@dataclass(eq=False, slots=True)
class Lease:
    """What its holder may do with one slot, until it is released or revoked."""

    slot: Slot
    host: Host
    ended: InfrastructureError | None = None
    """Why nothing can be done with the slot any more."""
    used: bool = False
    """Whether anything was ever done in it."""
    restoring: bool = False
    """Whether it is on its way to its first contents, and takes no requests yet."""
    _calls: set[_Call] = field(default_factory=set)
    _deadlines: Deadlines = field(default_factory=Deadlines)
    _owed_s: float = 0.0
    """Sum of the deadlines of requests under way: a slot carries them one after another."""

    def revoke(self, error: InfrastructureError) -> None:
        """The slot is gone: `error` for every request under way, and for each to come."""
        if self.slot.state is not SlotState.LOST:
            advance(self.slot, SlotState.LOST)
        self.end(error)

    def end(self, error: InfrastructureError) -> None:
        """Take no more requests, and answer those under way with `error`."""
        if self.ended is not None:
            return
        self.ended = error
        for call in self._calls:
            asyncio.get_running_loop().call_soon(call.interrupt)
        self._deadlines.close()

    def check(self) -> None:
        """Raise the error that ended this lease, if one did."""
        if self.ended is not None:
            raise _again(self.ended)

    async def carry(
        self, work: Callable[[], Awaitable[T]], what: str, deadline_s: float, grace_s: float
    ) -> T:
        """Await what the host does in this slot, `what` for short, which has its own deadline.

        Returns or raises at the latest `grace_s` after that deadline, and those before it; and within a second after
        it, unless the host shows that it is there (`SIGN_OF_LIFE_S`).
        """
        self.check()
        self.used = True
        self._owed_s += deadline_s
        call = _Call()
        self._calls.add(call)
        at = asyncio.get_running_loop().time() + self._owed_s
        self._deadlines.add(call, at, partial(self._doubt, call, self._owed_s, grace_s))
        try:
            return await work()
        except asyncio.CancelledError as error:
            if not call.end():
                raise
            if self.ended is not None:
                raise _again(self.ended) from None
            message = f"slot {self.slot.slot_id} gave no answer to {what} within {call.why}"
            raise SandboxTimeoutError(message) from error
        finally:
            call.end()
            self._calls.discard(call)
            self._deadlines.remove(call)
            self._owed_s -= deadline_s

    def _doubt(self, call: _Call, owed_s: float, grace_s: float) -> None:
        """A call is late: as long as its host is there it may be about to answer, until the grace is over."""
        why = f"{owed_s + grace_s:g} s, {grace_s:g} s after the deadline it was to keep itself"
        at = asyncio.get_running_loop().time() + grace_s
        self._deadlines.add(call, at, partial(call.interrupt, why))
        why = f"its deadline of {owed_s:g} s, and host {self.slot.host_id} gave no sign of life after it"
        name = f"signs of life of host {self.slot.host_id}"
        call.doubts = asyncio.create_task(self._look_for_life(call, why), name=name)

    async def _look_for_life(self, call: _Call, why: str) -> None:
        """Interrupt a call when its host leaves a question unanswered; ask again and again, for it may vanish yet."""
        loop, host_id = asyncio.get_running_loop(), self.slot.host_id
        while True:
            asked = loop.time()
            ping = asyncio.create_task(self.host.ping(), name=f"question to host {host_id}")
            try:
                for _ in range(_LOOKS):
                    await asyncio.wait({ping}, timeout=SIGN_OF_LIFE_S / _LOOKS)
            finally:
                ping.cancel()
            if not ping.done():
                call.interrupt(why)
                return
            if (error := ping.exception()) is not None:  # a loss is told to the call itself
                _log.debug("host %s could not be asked for a sign of life: %s", host_id, error)
                return
            await asyncio.sleep(asked + SIGN_OF_LIFE_S - loop.time())


def _again(error: InfrastructureError) -> InfrastructureError:
    """A copy, so that the tracebacks of several callers do not pile up on one exception."""
    return type(error)(*error.args)
