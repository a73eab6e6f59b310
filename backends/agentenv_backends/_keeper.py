"""`HostKeeper`: carries out what the scheduler asks of hosts and slots, and reports how it went.

The only place that awaits a `HostProvider` or the life cycle of a `Host`; each such wait is
bounded.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from agentenv_backends._aio import CANCEL_GRACE_S, bounded
from agentenv_backends.errors import BackendError, HostLostError, HostStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from agentenv_backends._scheduling import Scheduler
    from agentenv_backends.base import Capabilities
    from agentenv_backends.errors import SlotLostError
    from agentenv_backends.host import Host, HostProvider
    from agentenv_backends.settings import PoolSettings

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _LiveHost:
    host: Host
    opening: asyncio.Semaphore
    health: asyncio.Task[None] | None = None


class HostKeeper:
    """Runs one task for each thing under way. `apply` takes an event to the scheduler and does
    what follows from it.
    """

    def __init__(
        self,
        provider: HostProvider,
        settings: PoolSettings,
        scheduler: Scheduler,
        apply: Callable[[Callable[[], object]], None],
        on_slot_lost: Callable[[str, SlotLostError], None],
    ) -> None:
        self._provider = provider
        self._settings = settings
        self._scheduler = scheduler
        self._apply = apply
        self._on_slot_lost = on_slot_lost
        self._hosts: dict[str, _LiveHost] = {}
        self._slots_closing: dict[str, asyncio.Task[None]] = {}
        self._hosts_ending: dict[str, asyncio.Task[None]] = {}
        self._work: set[asyncio.Task[None]] = set()
        """Launches, opening and closing of slots, health checks: what a stop may cut short."""
        self._endings: set[asyncio.Task[None]] = set()
        """Hosts being ended: never cut short."""

    def host(self, host_id: str) -> Host:
        """The connection to a live host."""
        return self._hosts[host_id].host

    def find(self, host_id: str) -> Host | None:
        """The connection to a host; None when it is not live."""
        live = self._hosts.get(host_id)
        return live.host if live is not None else None

    async def prepare(self) -> Capabilities:
        """Check the machine and remove what dead runs left on it."""
        timeout_s = self._settings.prepare_timeout_s
        capabilities = await bounded(self._provider.prepare(), timeout_s, "checking the machine")
        try:
            timeout_s = self._settings.launch_timeout_s
            found = await bounded(self._provider.sweep(), timeout_s, "the sweep")
            removed = sum(leftover.removed for leftover in found)
        except Exception:  # noqa: BLE001 - leftovers of an earlier run must not keep this one from starting
            _log.warning("could not remove what earlier runs left behind", exc_info=True)
        else:
            _log.log(
                logging.INFO if removed else logging.DEBUG,
                "swept %d leftovers of dead runs",
                removed,
            )
        return capabilities

    # --- Actions ---------------------------------------------------------------------------------

    def launch(self, host_id: str) -> None:
        """Start a host."""
        self._spawn(self._work, self._launch(host_id), f"launch of host {host_id}")

    def open(self, host_id: str, slot_id: str) -> None:
        """Open a slot."""
        self._spawn(self._work, self._open(host_id, slot_id), f"opening of slot {slot_id}")

    def close(self, host_id: str, slot_id: str) -> None:
        """Close a slot."""
        closing = self._close(host_id, self._hosts[host_id].host, slot_id)
        task = self._spawn(self._work, closing, f"closing of slot {slot_id}")
        self._slots_closing[slot_id] = task
        task.add_done_callback(lambda _: self._slots_closing.pop(slot_id))

    def end(self, host_id: str, reason: str) -> None:
        """End a host."""
        ending = self._end(host_id, self._hosts.pop(host_id), reason)
        task = self._spawn(self._endings, ending, f"end of host {host_id}")
        self._hosts_ending[host_id] = task
        task.add_done_callback(lambda _: self._hosts_ending.pop(host_id))

    def lost(self, host_id: str, reason: str) -> None:
        """Report that a host is gone; once is enough, more does no harm."""
        if host_id in self._hosts:
            _log.warning("host %s is lost: %s", host_id, reason)
            self._apply(partial(self._scheduler.host_lost, host_id, reason))

    async def gone(self, host_id: str, slot_id: str) -> None:
        """Wait until closing a slot, or ending its host, is over, well or badly. Bounded."""
        task = self._hosts_ending.get(host_id) or self._slots_closing.get(slot_id)
        if task is not None:
            await asyncio.wait({task})

    async def finish(self, *, stop: Callable[[], None]) -> None:
        """Cut short what is under way, let `stop` end the hosts, wait until that is done, and let go of the provider.
        Bounded.
        """
        await self._finish_work(stop)
        await self._close_provider()

    async def _finish_work(self, stop: Callable[[], None]) -> None:
        unfinished = set(self._work)
        stop()
        for task in unfinished:
            task.cancel()
        patience = self._settings.close_timeout_s + 2 * CANCEL_GRACE_S
        while tasks := self._endings | unfinished:
            done, left = await asyncio.wait(tasks, timeout=patience)
            unfinished -= done
            if left:
                _log.error("gave up on: %s", ", ".join(sorted(task.get_name() for task in left)))
                return

    async def _close_provider(self) -> None:
        closing = getattr(self._provider, "close", None)
        if closing is None:
            return
        timeout_s = self._settings.close_timeout_s
        try:
            await bounded(closing(), timeout_s, "letting go of what all hosts shared")
        except Exception as error:  # noqa: BLE001 - no more can be done here; the provider's sweep is the next net
            unexpected = not isinstance(error, BackendError)
            _log.warning("something of the backend may be left: %s", error, exc_info=unexpected)

    # --- Tasks -----------------------------------------------------------------------------------

    async def _launch(self, host_id: str) -> None:
        try:
            host = await bounded(
                self._provider.launch(host_id),
                self._settings.launch_timeout_s,
                f"the launch of host {host_id}",
                too_late=self._close_late,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for a host must hear of it
            _log.warning("host %s did not start: %s", host_id, error)
            cause = _start_error(host_id, error)
            self._apply(partial(self._scheduler.host_failed, host_id, cause))
            return
        live = _LiveHost(host, asyncio.Semaphore(self._settings.opening_at_once))
        self._hosts[host_id] = live
        host.on_lost(partial(self.lost, host_id))
        host.on_slot_lost(self._on_slot_lost)
        expires_at = getattr(host, "expires_at", None)
        self._apply(partial(self._scheduler.host_launched, host_id, expires_at))
        if host_id in self._hosts:
            watch = self._watch(host_id, host)
            live.health = self._spawn(self._work, watch, f"health of host {host_id}")

    def _close_late(self, host: Host) -> None:
        self._spawn(
            self._endings, host.close(), f"end of host {host.host_id}, which was up too late"
        )

    async def _open(self, host_id: str, slot_id: str) -> None:
        live = self._hosts.get(host_id)
        if live is None:
            return
        async with live.opening:
            if host_id not in self._hosts:
                return
            timeout_s = self._settings.open_timeout_s
            try:
                await bounded(live.host.open_slot(slot_id), timeout_s, f"opening slot {slot_id}")
            except Exception as error:  # noqa: BLE001 - whatever it is, the slot is of no use
                _log.warning("slot %s did not open: %s", slot_id, error)
                if isinstance(error, HostLostError):
                    self.lost(host_id, str(error))
                self._apply(partial(self._scheduler.slot_failed, slot_id, str(error)))
            else:
                self._apply(partial(self._scheduler.slot_opened, slot_id))

    async def _close(self, host_id: str, host: Host, slot_id: str) -> None:
        clean = False
        try:
            timeout_s = self._settings.close_timeout_s
            await bounded(host.close_slot(slot_id), timeout_s, f"closing slot {slot_id}")
            clean = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the slot must not be used again
            _log.warning("slot %s is quarantined, it could not be closed: %s", slot_id, error)
            if isinstance(error, HostLostError):
                self.lost(host_id, str(error))
        self._apply(partial(self._scheduler.slot_closed, slot_id, clean=clean))

    async def _end(self, host_id: str, live: _LiveHost, reason: str) -> None:
        _log.debug("ending host %s: %s", host_id, reason)
        if live.health is not None:
            live.health.cancel()
        try:
            timeout_s = self._settings.close_timeout_s
            await bounded(live.host.close(), timeout_s, f"ending host {host_id}")
        except Exception as error:  # noqa: BLE001 - no more can be done here; the provider's sweep is the next net
            unexpected = not isinstance(error, BackendError)
            _log.warning("host %s could not be ended: %s", host_id, error, exc_info=unexpected)
        self._apply(partial(self._scheduler.host_closed, host_id))

    async def _watch(self, host_id: str, host: Host) -> None:
        """Check a host's health until it is gone.

        One missed answer is forgiven: when the driver itself stood still, deadlines pass before
        answers are read.
        """
        missed = 0
        while missed < 2:
            await asyncio.sleep(0 if missed else self._settings.ping_interval_s)
            try:
                await bounded(host.ping(), self._settings.ping_timeout_s, "a health check")
                missed = 0
            except TimeoutError:
                missed += 1
            except Exception as error:  # noqa: BLE001 - a host that cannot be asked is gone
                self.lost(host_id, f"a health check failed: {error}")
                return
        self.lost(host_id, f"{missed} health checks went unanswered")

    def _spawn(
        self, group: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        group.add(task)
        task.add_done_callback(group.discard)
        return task


def _start_error(host_id: str, cause: Exception) -> BackendError:
    if isinstance(cause, BackendError):
        return cause
    error = HostStartError(f"host {host_id} did not start: {cause or type(cause).__name__}")
    error.__cause__ = cause
    return error
