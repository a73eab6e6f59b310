"""`Steward`: follows a job's allocations and carries out what the ledger plans.

    launch ──► claim ──► Ledger ──► scale, stop, evaluate ──► cluster
                            ▲                                    │
                            └────────── blocking query ◄─────────┘

Two tasks: one follows the listing, one acts. Neither ever ends for a failure of the API: it is tried again, sooner or
later, and nothing is concluded from it. No command of a trajectory comes by here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from agentenv_backends.errors import HostStartError
from agentenv_backends.nomad.allocations import Allocation, why_not_placed
from agentenv_backends.nomad.errors import NomadError, NomadNotFoundError, ScalingBlockedError
from agentenv_backends.nomad.job import GROUP
from agentenv_backends.nomad.registry import RENEW_S, claim_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends._owner import Owner
    from agentenv_backends.nomad.api import NomadApi
    from agentenv_backends.nomad.ledger import Ledger, Plan

_log = logging.getLogger(__name__)

_WAIT_S = 30.0
"""How long a blocking query waits for something to happen."""
_BREATH_S = 0.05
"""Pause between two of them: a listing that changes all the time is looked at in steps."""
_COALESCE_S = 0.02
"""Launches that come together are one change of the count."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0
_IMPATIENT_S = 1.0
"""How long an allocation may be missing before it is asked why."""


class Steward:
    """Looks after one job. `on_over` hears of claimed allocations in which no host can run any more."""

    def __init__(
        self,
        api: NomadApi,
        job_id: str,
        owner: Owner,
        run_id: str,
        ledger: Ledger,
        on_over: Callable[[Allocation], None],
    ) -> None:
        self._api = api
        self._job_id = job_id
        self._owner = owner
        self._run_id = run_id
        self._ledger = ledger
        self._on_over = on_over
        self._changed = asyncio.Event()
        """Set, and replaced, whenever something is known anew."""
        self._to_do = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._listed = False
        self._placement_trouble = ""
        self._api_trouble = ""
        self._action_trouble = ""
        self._clock_offset_s = 0.0
        self._claimed_at = -RENEW_S

    def start(self) -> None:
        """Begin to follow and to act."""
        for work, name in ((self._follow(), "follows"), (self._act(), "acts")):
            self._tasks.append(asyncio.create_task(work, name=f"{name} job {self._job_id}"))

    async def stop(self) -> None:
        """End both. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- for launches ------------------------------------------------------------------------------

    async def claim(self, within_s: float, *, fail_early: bool = False) -> Allocation:
        """An allocation whose host runs, for one host. Raises `HostStartError` that tells why there is none.

        `fail_early`: also as soon as it is clear that there will be none.
        """
        ledger, loop = self._ledger, asyncio.get_running_loop()
        deadline = loop.time() + within_s
        ledger.waiting += 1
        try:
            while True:
                changed = self._changed
                if (found := ledger.claim(loop.time())) is not None:
                    return found
                reason = self._hopeless() if fail_early else ""
                left = deadline - loop.time()
                if reason or left <= 0:
                    raise HostStartError(reason or f"no host in time: {self.trouble}")
                self._to_do.set()
                await _wait(
                    changed, min(left, max(0.05, ledger.wake_at(loop.time()) - loop.time()))
                )
        finally:
            ledger.waiting -= 1
            self._to_do.set()

    def give_back(self, allocation_id: str, *, silent: bool) -> None:
        """A claimed one was not used; `silent`: as it does not answer."""
        self._ledger.give_back(allocation_id, asyncio.get_running_loop().time(), silent=silent)
        self._tell()

    def spend(self, allocation_id: str, *, broken: bool) -> None:
        """A claimed one has served; `broken`: and may hang."""
        self._ledger.spend(allocation_id, broken=broken)
        self._tell()

    async def explain(self, allocation_id: str, within_s: float) -> str:
        """What became of an allocation whose host went, once that is known; empty: it is not within that time."""
        deadline = asyncio.get_running_loop().time() + within_s
        restarts = known.restarts if (known := self._ledger.get(allocation_id)) else 0
        while True:
            changed = self._changed
            seen = self._ledger.get(allocation_id)
            left = deadline - asyncio.get_running_loop().time()
            if seen is not None and (not seen.is_up or seen.restarts > restarts):
                return seen.story()
            if left <= 0:
                return ""
            await _wait(changed, left)

    @property
    def trouble(self) -> str:
        """Why there is no free allocation, as far as is known."""
        stories = [each.story() for each in self._ledger.unclaimed if not each.is_up][:3]
        told = [self._api_trouble, self._action_trouble, self._placement_trouble, *stories]
        if not any(told) and self._ledger.missing:
            told = ["the scheduler has placed no allocation"]
        return "; ".join(filter(None, told)) or "all allocations that run are in use"

    def _hopeless(self) -> str:
        """Why there will be no host, however long one waits."""
        if self._placement_trouble:
            return f"no node can take a host: {self._placement_trouble}"
        for each in self._ledger.unclaimed:
            if each.lacks_image:
                return f"`image` cannot be had: {each.story()}"
            if each.restarts > 1 or each.is_stuck:
                return f"hosts do not stay up: {each.story()}"
        return ""

    # --- following ---------------------------------------------------------------------------------

    async def _follow(self) -> None:
        index, pause_s = 0, _FIRST_PAUSE_S
        path = f"job/{self._job_id}/allocations"
        while True:
            try:
                answer = await self._api.follow(path, index, _WAIT_S)
                listing = [Allocation.read(stub) for stub in answer.value]
            except (NomadError, KeyError, TypeError, AttributeError) as error:
                self._note_api_trouble(error)
                await asyncio.sleep(pause_s)
                index, pause_s = 0, min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s, self._api_trouble = _FIRST_PAUSE_S, ""
            # An index that goes back belongs to another state: begin anew.
            index = answer.index if answer.index >= index else 0
            if answer.time:
                self._clock_offset_s = answer.time - time.time()
            self._take(listing)
            await asyncio.sleep(_BREATH_S)

    def _take(self, listing: list[Allocation]) -> None:
        self._listed = True
        before = {each.allocation_id: each for each in listing}
        for each in listing:
            known = self._ledger.get(each.allocation_id)
            if known is not None and known != each and each.restarts > known.restarts:
                _log.warning("%s", each.story())
        for each in self._ledger.update(before.values()):
            self._on_over(each)
        self._tell()

    def _note_api_trouble(self, error: Exception) -> None:
        reason = str(error) or repr(error)
        if not self._api_trouble:
            _log.warning("allocations cannot be looked up, hosts go on: %s", reason)
        self._api_trouble = reason

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._to_do.set()

    # --- acting ------------------------------------------------------------------------------------

    async def _act(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while True:
            now = loop.time()
            wake_at = min(self._ledger.wake_at(now), self._claimed_at + RENEW_S)
            if self._ledger.waiting and self._ledger.missing:
                wake_at = min(wake_at, now + _IMPATIENT_S)
            if pause_s:
                await asyncio.sleep(pause_s)
            else:
                await _wait(self._to_do, max(0.0, wake_at - now))
            self._to_do.clear()
            await asyncio.sleep(_COALESCE_S)
            try:
                await self._do_what_is_due(loop.time())
                pause_s, self._action_trouble = 0.0, ""
            except NomadError as error:
                pause_s = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
                blocked = isinstance(error, ScalingBlockedError)
                level = logging.INFO if blocked else logging.WARNING
                self._action_trouble = str(error)
                _log.log(level, "job %s: again in %g s, as %s", self._job_id, pause_s, error)

    async def _do_what_is_due(self, now: float) -> None:
        if self._listed:
            await self._carry_out(self._ledger.plan(now))
        if self._ledger.waiting and self._ledger.missing:
            await self._ask_why()
        else:
            self._placement_trouble = ""
        if now - self._claimed_at >= RENEW_S:
            await self.claim_job(now)

    async def claim_job(self, now: float) -> None:
        """Say that this run uses the job."""
        await self._api.write(f"job/{self._job_id}/scale", self._claim_body())
        self._claimed_at = now

    async def disclaim_job(self) -> None:
        """Say that it does not any more."""
        await self._api.write(f"job/{self._job_id}/scale", self._claim_body(lasts_s=0.0))

    def _claim_body(self, **options: float) -> dict[str, Any]:
        now = time.time() + self._clock_offset_s
        return claim_body(self._owner, self._run_id, now, **options)

    async def _carry_out(self, plan: Plan) -> None:
        if plan.count is not None:
            body = {**self._claim_body(), "Count": plan.count}
            await self._api.write(f"job/{self._job_id}/scale", body)
            _log.debug("job %s: %d hosts, not %d", self._job_id, plan.count, self._ledger.count)
            self._ledger.count = plan.count
        for allocation_id in plan.stop:
            await self._stop(allocation_id)
        if plan.reschedule:
            body = {"JobID": self._job_id, "EvalOptions": {"ForceReschedule": True}}
            await self._api.write(f"job/{self._job_id}/evaluate", body)

    async def _stop(self, allocation_id: str) -> None:
        try:
            await self._api.write(f"allocation/{allocation_id}/stop")
        except NomadNotFoundError:
            _log.debug("allocation %s was forgotten before it could be stopped", allocation_id)
        self._ledger.stopped(allocation_id)

    async def _ask_why(self) -> None:
        """What the newest evaluation says about allocations that are missing, and how many there really ought to be."""
        status = (await self._api.read(f"job/{self._job_id}/scale")).value
        self._ledger.count = int(status["TaskGroups"][GROUP]["Desired"])
        answer = await self._api.read(f"job/{self._job_id}/evaluations")
        told = [each for each in answer.value if each.get("Status") in ("complete", "blocked")]
        newest: dict[str, Any] = max(
            told, key=lambda each: int(each.get("ModifyIndex") or 0), default={}
        )
        metric = (newest.get("FailedTGAllocs") or {}).get(GROUP)
        self._placement_trouble = why_not_placed(metric) if metric else ""
        if metric:
            self._changed.set()
            self._changed = asyncio.Event()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(min(timeout_s, _WAIT_S)):
            await event.wait()
    except TimeoutError:
        return
