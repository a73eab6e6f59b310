"""Those who wait for a slot: each is answered once, by a lease or an error, or leaves without a trace."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from agentenv_backends.errors import (
    AcquireTimeoutError,
    BackendError,
    BackendStoppedError,
    HostStartError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv_backends._leases import Lease
    from agentenv_backends._scheduling import Scheduler


@dataclass(slots=True)
class _Waiter:
    trajectory_id: str
    granted: asyncio.Future[Lease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class WaitingRoom:
    """Takes tickets of the scheduler for callers. `apply` takes an event to the scheduler and does what follows."""

    def __init__(
        self,
        scheduler: Scheduler,
        apply: Callable[[Callable[[], object]], None],
        put_back: Callable[[Lease], None],
        situation: Callable[[], str],
    ) -> None:
        """`put_back` takes a lease that nobody is there for any more; `situation` says who holds the slots."""
        self._scheduler = scheduler
        self._apply = apply
        self._put_back = put_back
        self._situation = situation
        self._waiters: dict[int, _Waiter] = {}
        self._tickets = itertools.count(1)

    async def wait(self, trajectory_id: str, timeout_s: float) -> Lease:
        """A slot, in turn. Raises `AcquireTimeoutError`, or the error that the scheduler refuses with."""
        ticket = next(self._tickets)
        waiter = self._waiters[ticket] = _Waiter(trajectory_id)
        self._apply(partial(self._scheduler.enqueue, ticket))
        expiry = None
        if timeout_s < inf and not waiter.granted.done():
            expire = partial(self._expire, ticket, timeout_s)
            expiry = asyncio.get_running_loop().call_later(timeout_s, expire)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            self._abandon(ticket, waiter)
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
            self._waiters.pop(ticket, None)

    def name(self, ticket: int) -> str | None:
        """Whose ticket it is; None when nobody waits with it any more."""
        waiter = self._waiters.get(ticket)
        return None if waiter is None or waiter.granted.done() else waiter.trajectory_id

    def grant(self, ticket: int, lease: Lease) -> None:
        """Answer somebody who still waits."""
        self._waiters[ticket].granted.set_result(lease)

    def refuse(self, ticket: int, cause: BackendError) -> None:
        """Tell somebody that there will be no slot."""
        waiter = self._waiters.get(ticket)
        if waiter is None or waiter.granted.done():
            return
        if isinstance(cause, BackendStoppedError):
            waiter.granted.set_exception(BackendStoppedError(*cause.args))
        else:
            waiter.granted.set_exception(no_host(waiter.trajectory_id, cause))

    def _expire(self, ticket: int, timeout_s: float) -> None:
        waiter = self._waiters[ticket]
        if not waiter.granted.done():
            others = [
                other.trajectory_id for other in self._waiters.values() if other is not waiter
            ]
            message = (
                f"no slot came free for {waiter.trajectory_id} within {timeout_s:g} s: "
                f"{self._situation()}; also waiting: {some(others)}. Raise `slots`, `max_hosts` or "
                "`acquire_timeout_s`, or run fewer trajectories at a time"
            )
            waiter.granted.set_exception(AcquireTimeoutError(message))
            self._scheduler.withdraw(ticket)

    def _abandon(self, ticket: int, waiter: _Waiter) -> None:
        """The waiter was cancelled, perhaps in the very moment it was answered."""
        self._scheduler.withdraw(ticket)
        if waiter.granted.cancelled() or waiter.granted.exception() is not None:
            return
        self._put_back(waiter.granted.result())


def no_host(for_whom: str, cause: BackendError) -> HostStartError:
    """What somebody hears who needs a host, when none can be had because of `cause`."""
    error = HostStartError(f"no host can be had for {for_whom}: {cause}")
    error.__cause__ = cause
    return error


def some(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many there are beside."""
    if not names:
        return "nobody"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
