"""By how much calls overrun their deadlines, on a machine that may be busy with other things."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from agentenv_backends.errors import InfrastructureError
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends.base import Slot
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result

_TICK_S = 0.05
_STANDSTILL_S = 0.4
_SILENT_CALL_S = 2.0
_log = logging.getLogger(__name__)


class TimedPool(SlotPool):
    """Notes the worst overrun of any call: of its own deadline, without the grace of the contract."""

    calls = 0
    worst_overrun_s = 0.0

    async def execute(self, slot: Slot, request: Request) -> Result:
        overrun = _Overrun(getattr(request, "timeout_s", self.default_timeout_s))
        try:
            return await super().execute(slot, request)
        finally:
            self.calls += 1
            overrun_s = overrun.end()
            if overrun_s:
                _log.info("%s overran its deadline by %.2f s", request, overrun_s)
            self.worst_overrun_s = max(self.worst_overrun_s, overrun_s)


class _Overrun:
    """Time past a deadline, counted in turns of the driver's own clock: one that comes late, as others use the
    processor, proves nothing about a host and counts as one. After a standstill the pool gives the host more time, and
    this begins again.
    """

    def __init__(self, deadline_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + deadline_s
        self._turns = -1
        self._timer = self._loop.call_at(self._due, self._tick)

    def end(self) -> float:
        self._timer.cancel()
        return max(0, self._turns) * _TICK_S

    def _tick(self) -> None:
        stood_still = self._loop.time() - self._due > _STANDSTILL_S
        self._turns = 0 if stood_still else self._turns + 1
        self._due = self._loop.time() + _TICK_S
        self._timer = self._loop.call_at(self._due, self._tick)


async def call_on_a_host_that_falls_silent(
    pool: SlotPool, silence: Callable[[Slot], None]
) -> InfrastructureError | None:
    """The error of a call whose host answers nothing from then on, though nothing tells that it is gone.

    None: the call had an answer all the same.
    """
    slot = await _slot_of_a_living_host(pool)
    try:
        silence(slot)
        await pool.execute(slot, ExecRequest("true", timeout_s=_SILENT_CALL_S))
    except InfrastructureError as error:
        return error
    finally:
        await pool.release(slot, reset_workspace=False)
    return None


async def _slot_of_a_living_host(pool: SlotPool) -> Slot:
    """A slot that has just answered: another's host may have ended already, with the news still on its way."""
    while True:
        slot = await pool.acquire("on a silent host")
        try:
            await pool.execute(slot, ExecRequest("true"))
        except InfrastructureError:
            await pool.release(slot, reset_workspace=False)
        else:
            return slot
