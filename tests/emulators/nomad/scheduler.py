"""The servers' scheduler: evaluations of jobs, and the allocations that are placed, stopped and rescheduled by them."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

from tests.emulators.nomad.model import Alloc
from tests.emulators.nomad.placing import Changes, Wanted, choose_node, reconcile
from tests.emulators.nomad.tasks import TaskRunner, free_port

if TYPE_CHECKING:
    from tests.emulators.nomad.cluster import Cluster

_NS = 1e9
_DEFAULT_RESCHEDULE = {
    "Attempts": 0,
    "Interval": 0,
    "Delay": 30 * 10**9,
    "DelayFunction": "exponential",
    "MaxDelay": 3600 * 10**9,
    "Unlimited": True,
}


class Scheduler:
    """Looks at a job whenever something about it has changed, in its own time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._eval_locks: dict[str, asyncio.Lock] = {}
        self._blocked: set[str] = set()
        self._deployments: dict[str, float] = {}

    def evaluate(
        self, job_id: str, cause: str, due: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """Have the scheduler look at a job, in its own time."""
        index = self._cluster.state.touch("evals")
        evaluation: dict[str, Any] = {
            "ID": str(uuid.uuid4()),
            "JobID": job_id,
            "Namespace": "default",
            "Type": "service",
            "TriggeredBy": cause,
            "Status": "pending",
            "StatusDescription": "",
            "FailedTGAllocs": None,
            "BlockedEval": "",
            "QueuedAllocations": {},
            "CreateIndex": index,
            "ModifyIndex": index,
        }
        self._cluster.state.evals[evaluation["ID"]] = evaluation
        self._cluster.spawn(self._schedule(evaluation, set(due)))
        return evaluation

    def _lock(self, job_id: str) -> asyncio.Lock:
        return self._eval_locks.setdefault(job_id, asyncio.Lock())

    async def _schedule(self, evaluation: dict[str, Any], due: set[str]) -> None:
        await asyncio.sleep(self._cluster.faults.placement_s)
        while self._cluster.faults.no_leader:
            await asyncio.sleep(0.02)
        job_id = evaluation["JobID"]
        async with self._lock(job_id):
            job = self._cluster.state.jobs.get(job_id)
            if job is None:
                evaluation["Status"] = "complete"
                return
            for group in job["TaskGroups"]:
                allocs = [
                    each
                    for each in self._cluster.state.allocs_of(job_id)
                    if each.job["CreateIndex"] == job["CreateIndex"]
                ]
                changes = reconcile(job, group, allocs, due)
                self._carry_out(job, group, changes, evaluation)
            self._set_status(job)
            evaluation["Status"] = "complete"
            evaluation["ModifyIndex"] = self._cluster.state.touch("evals")

    def _carry_out(
        self,
        job: dict[str, Any],
        group: dict[str, Any],
        changes: Changes,
        evaluation: dict[str, Any],
    ) -> None:
        for each, why in changes.stop:
            if each.node.status == "down":
                each.client = "lost"
                each.client_description = "alloc is lost since its node is down"
            self._stop(each, why)
        for wanted in changes.place:
            self._place(job, group, wanted, evaluation)
        for each in changes.later:
            self._reschedule_later(each, group)
        for each in self._cluster.state.allocs_of(
            job["ID"]
        ):  # in place, as nothing of them changes
            if not each.is_server_over and not each.is_client_over:
                each.job = job

    def _place(
        self, job: dict[str, Any], group: dict[str, Any], wanted: Wanted, evaluation: dict[str, Any]
    ) -> None:
        node, reasons = choose_node(self._cluster.state, job, group)
        if self._cluster.faults.no_placement:
            node = None
            reasons["DimensionExhausted"] = {"memory": reasons["NodesEvaluated"]}
        if node is None:
            failed = evaluation["FailedTGAllocs"] = evaluation["FailedTGAllocs"] or {}
            failed.setdefault(group["Name"], reasons)
            queued = evaluation["QueuedAllocations"]
            queued[group["Name"]] = queued.get(group["Name"], 0) + 1
            evaluation["BlockedEval"] = str(uuid.uuid4())
            self._blocked.add(job["ID"])
            return
        name = f"{job['ID']}.{group['Name']}[{wanted.index}]"
        alloc = Alloc(job, group, name, node, evaluation["ID"])
        if wanted.previous is not None:
            alloc.previous = wanted.previous.alloc_id
            alloc.reschedules = wanted.previous.reschedules
            if wanted.previous.client == "failed":
                alloc.reschedules = (*alloc.reschedules, time.monotonic())
            wanted.previous.next_alloc = alloc.alloc_id
            self._cluster.state.touch_alloc(wanted.previous)
        alloc.port = free_port(node.ip)
        self._cluster.state.allocs[alloc.alloc_id] = alloc
        self._cluster.state.touch_alloc(alloc)
        update = job.get("Update") or {"MaxParallel": 1}
        if update.get("MaxParallel"):
            healthy_s = int(update.get("MinHealthyTime", 10 * _NS)) / _NS
            self._deployments[job["ID"]] = time.monotonic() + healthy_s * self._cluster.time_factor
        alloc.runner = TaskRunner(self._cluster, alloc, self._cluster.folder / alloc.alloc_id)
        alloc.runner.start()

    def _stop(self, alloc: Alloc, why: str) -> None:
        alloc.desired, alloc.desired_description = "stop", why
        self._cluster.state.touch_alloc(alloc)
        if alloc.runner is not None and not alloc.node.cut_off:
            self._cluster.spawn(alloc.runner.stop())

    def _reschedule_later(self, alloc: Alloc, group: dict[str, Any]) -> None:
        policy = {**_DEFAULT_RESCHEDULE, **(group.get("ReschedulePolicy") or {})}
        window_s = int(policy["Interval"]) / _NS * self._cluster.time_factor
        recent = [at for at in alloc.reschedules if time.monotonic() - at < window_s]
        if not policy["Unlimited"] and len(recent) >= int(policy["Attempts"]):
            return
        delay_s = int(policy["Delay"]) / _NS * 2 ** len(alloc.reschedules)
        delay_s = min(delay_s, int(policy["MaxDelay"]) / _NS)
        alloc.follow_up = str(uuid.uuid4())
        self._cluster.state.touch_alloc(alloc)
        self._cluster.spawn(self._reschedule(alloc, delay_s * self._cluster.time_factor))

    async def _reschedule(self, alloc: Alloc, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if not alloc.next_alloc:
            self.evaluate(alloc.job["ID"], "alloc-failure", frozenset({alloc.alloc_id}))

    def _set_status(self, job: dict[str, Any]) -> None:
        live = [
            each
            for each in self._cluster.state.allocs_of(job["ID"])
            if not each.is_server_over and not each.is_client_over
        ]
        waiting = job["ID"] in self._blocked and any(each["Count"] for each in job["TaskGroups"])
        job["Status"] = "running" if live else "pending" if waiting else "dead"

    async def stop_all(self, job: dict[str, Any], lag_s: float) -> None:
        """End what runs of a job that is stopped."""
        await asyncio.sleep(lag_s)
        async with self._lock(job["ID"]):
            for each in self._cluster.state.allocs_of(job["ID"]):
                same = each.job["CreateIndex"] == job["CreateIndex"]
                if same and not each.is_server_over:
                    self._stop(each, "alloc not needed as job is stopped")

    def is_deploying(self, job: dict[str, Any]) -> bool:
        """Whether allocations of a job were placed so lately that they do not count as healthy yet."""
        return self._deployments.get(job["ID"], 0.0) > time.monotonic()

    def unblock(self) -> None:
        """There is room again: try for what could not be placed."""
        blocked, self._blocked = self._blocked, set()
        for job_id in blocked:
            self.evaluate(job_id, "queued-allocs")
