"""Whose a job is, taking one over, and the sweep of jobs whose runs are no more.

A job says in its metadata which run made it. Who uses it now says so in a scaling event without a count, which changes
nothing but is kept with the job and shown by `nomad job scaling-events`: a claim, good until a time by the cluster's
clock, and renewed. So that a run is dead can be told from any machine, though later than from its own.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentenv_backends._owner import Owner
from agentenv_backends.errors import BackendUnavailableError
from agentenv_backends.host import Leftover
from agentenv_backends.nomad.allocations import Allocation
from agentenv_backends.nomad.errors import NomadError, NomadNotFoundError
from agentenv_backends.nomad.job import (
    GROUP,
    OWNER_KEY,
    PREFIX,
    RUN_KEY,
    SPEC_KEY,
    key_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_backends.nomad.api import NomadApi

CLAIM_S = 900.0
RENEW_S = 300.0
_UNTIL_KEY = "agentenv.until"
_LOOK_S = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """Who uses a job, and until when at least, by the cluster's clock."""

    owner: str
    run_id: str
    until: float

    @property
    def holder(self) -> str:
        """For people."""
        owner = Owner.read(self.owner)
        return f"run {self.run_id}, {owner}" if owner is not None else f"run {self.run_id}"

    def is_void(self, now: float) -> bool:
        """Whether nobody uses the job by it any more."""
        owner = Owner.read(self.owner)
        return now > self.until or (owner is not None and owner.is_dead())


def claim_body(
    owner: Owner, run_id: str, now: float, *, lasts_s: float = CLAIM_S
) -> dict[str, Any]:
    """A scaling event that claims a job, or with 0 seconds lets go of it; a count may be added, to scale it too."""
    until = now + lasts_s if lasts_s else 0.0
    return {
        "Target": {"Group": GROUP},
        "Message": f"agentenv run {run_id} uses this job" if lasts_s else f"run {run_id} is done",
        "Meta": {
            OWNER_KEY: owner.label(),
            RUN_KEY: run_id,
            _UNTIL_KEY: f"{until:.0f}",
        },
    }


async def find_claim(api: NomadApi, job: Mapping[str, Any]) -> tuple[Claim, float]:
    """The newest claim on a job, and the time by the cluster's clock. Raises `NomadError`.

    A job on which there is none yet is its maker's.
    """
    answer = await api.read(f"job/{job['ID']}/scale")
    events = ((answer.value.get("TaskGroups") or {}).get(GROUP) or {}).get("Events") or ()
    claims = [event for event in events if _UNTIL_KEY in (event.get("Meta") or {})]
    if claims:
        meta = max(claims, key=lambda event: int(event.get("Time") or 0))["Meta"]
        until = float(meta[_UNTIL_KEY])
    else:
        meta = job.get("Meta") or {}
        until = int(job.get("SubmitTime") or 0) / 1e9 + CLAIM_S
    return Claim(meta.get(OWNER_KEY, ""), meta.get(RUN_KEY, "?"), until), answer.time


async def find_job(api: NomadApi, job_id: str) -> dict[str, Any] | None:
    """A job as it is registered; None when there is none. Raises `NomadError`."""
    try:
        return dict((await api.read(f"job/{job_id}")).value)
    except NomadNotFoundError:
        return None


def is_live(job: Mapping[str, Any]) -> bool:
    """Whether a job is meant to run."""
    return not job.get("Stop") and job.get("Status") != "dead"


async def key_to_take_over(api: NomadApi, job: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The key of the hosts of a job that an earlier run left, which is as `wanted`.

    Raises `BackendUnavailableError` when it is another job, or another run's that is alive; `NomadError`.
    """
    job_id, key = job["ID"], key_of(job)
    meta = job.get("Meta") or {}
    if key is None or SPEC_KEY not in meta:
        raise BackendUnavailableError(
            f"job_id: a job {job_id!r} runs that is not one of ours; choose another name"
        )
    claim, now = await find_claim(api, job)
    if not claim.is_void(now):
        raise BackendUnavailableError(
            f"job_id: job {job_id!r} is in use by {claim.holder}; two runs at once need two names, or none, which "
            "gives each run a job of its own"
        )
    if meta[SPEC_KEY] != wanted["Meta"][SPEC_KEY]:
        raise BackendUnavailableError(
            f"job_id: job {job_id!r} was left by run {meta.get(RUN_KEY, '?')} with other settings of hosts than these; "
            "set purge_job_on_start to true to end it first, or choose another name"
        )
    return key


async def purge(api: NomadApi, job_id: str, within_s: float) -> list[Allocation]:
    """End a job and forget it; returns what still runs of it after `within_s`, which the cluster is ending.

    Raises `NomadError` when the cluster cannot even be told.
    """
    await api.delete(f"job/{job_id}", purge="true")
    index, left = 0, list[Allocation]()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while (patience := deadline - loop.time()) > 0:
        path, wait_s = f"job/{job_id}/allocations", min(patience, _LOOK_S)
        try:
            answer = await api.follow(path, index, wait_s, all="true")
        except NomadError as error:
            _log.debug("job %s is purged; what is left cannot be told: %s", job_id, error)
            await asyncio.sleep(min(patience, 0.2))
            continue
        left = [each for each in map(Allocation.read, answer.value) if not each.has_ended]
        if not left:
            return []
        index = answer.index if answer.index >= index else 0
        await asyncio.sleep(0.02)
    return left


async def sweep(api: NomadApi, run_id: str, *, remove: bool) -> tuple[Leftover, ...]:
    """Find jobs of dead runs, and end them if asked to. Raises `NomadError`.

    Jobs with a name of the user's own are meant to stay, and are not looked at.
    """
    listing = await api.read("jobs", prefix=PREFIX, meta="true")
    found = []
    for stub in listing.value:
        meta = stub.get("Meta") or {}
        if OWNER_KEY not in meta or meta.get(RUN_KEY) == run_id:
            continue
        claim = await _claim_of(api, stub)
        if claim is not None:
            removed = remove and await _removed(api, stub["ID"])
            found.append(Leftover("job", stub["ID"], claim.holder, removed))
    return tuple(found)


async def _claim_of(api: NomadApi, stub: Mapping[str, Any]) -> Claim | None:
    """The last claim on a job that nobody needs any more; None when somebody does, or may."""
    try:
        claim, now = await find_claim(api, stub)
    except NomadNotFoundError:
        return None
    return claim if claim.is_void(now) else None


async def _removed(api: NomadApi, job_id: str) -> bool:
    try:
        await api.delete(f"job/{job_id}", purge="true")
    except NomadError as error:
        _log.warning("a job of a dead run stays: %s", error)
        return False
    return True
