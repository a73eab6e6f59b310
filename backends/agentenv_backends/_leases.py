"""A slot in the hands of its holder: its legal states, and what is under way in it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from agentenv_backends.base import Slot, SlotState
from agentenv_backends.errors import InfrastructureError, SandboxTimeoutError, SlotStateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentenv_backends.host import Host

T = TypeVar("T")

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
    _calls: set[asyncio.Timeout] = field(default_factory=set)
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
        now = asyncio.get_running_loop().time()
        for call in self._calls:
            if not call.expired():
                call.reschedule(now)

    def check(self) -> None:
        """Raise the error that ended this lease, if one did."""
        if self.ended is not None:
            raise _again(self.ended)

    async def carry(
        self, work: Callable[[], Awaitable[T]], what: str, deadline_s: float, grace_s: float
    ) -> T:
        """Await what the host does in this slot, `what` for short, which has its own deadline.

        Returns or raises at the latest `grace_s` after that deadline, and those before it.
        """
        self.check()
        self.used = True
        self._owed_s += deadline_s
        patience = self._owed_s + grace_s
        timeout = asyncio.timeout(patience)
        try:
            async with timeout:
                self._calls.add(timeout)
                return await work()
        except TimeoutError as error:
            if not timeout.expired():
                raise
            if self.ended is not None:
                raise _again(self.ended) from None
            raise SandboxTimeoutError(
                f"slot {self.slot.slot_id} gave no answer to {what} within {patience:g} s, "
                f"{grace_s:g} s after the deadline it was to keep itself"
            ) from error
        finally:
            self._calls.discard(timeout)
            self._owed_s -= deadline_s


def _again(error: InfrastructureError) -> InfrastructureError:
    """A copy, so that the tracebacks of several callers do not pile up on one exception."""
    return type(error)(*error.args)
