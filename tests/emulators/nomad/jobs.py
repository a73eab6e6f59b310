"""What the API does with jobs: registering, scaling and stopping them, and asking what would be done."""

from __future__ import annotations

import copy
import time
import uuid
from typing import TYPE_CHECKING, Any

from tests.emulators.nomad.model import TRACKED_SCALING_EVENTS, Refused
from tests.emulators.nomad.placing import choose_node

if TYPE_CHECKING:
    from tests.emulators.nomad.cluster import Cluster


class Jobs:
    """Answers requests about jobs, and leaves to the scheduler what follows from them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler

    def register(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/jobs`."""
        job = body.get("Job")
        if not job:
            raise Refused(400, "Job must be specified")
        if not job.get("ID"):
            raise Refused(400, "Job ID hasn't been provided")
        found = self._cluster.state.jobs.get(job["ID"])
        if body.get("EnforceIndex"):
            self._enforce_index(found, int(body.get("JobModifyIndex") or 0))
        self._check(job)
        job = copy.deepcopy(job)
        self._put_job(job, found)
        if body.get("PreserveCounts") and found is not None:
            for group, before in zip(job["TaskGroups"], found["TaskGroups"], strict=False):
                group["Count"] = before["Count"]
        evaluation = self._scheduler.evaluate(job["ID"], "job-register")
        return self._registered(job, evaluation)

    def _enforce_index(self, found: dict[str, Any] | None, wanted: int) -> None:
        has = found["JobModifyIndex"] if found is not None else 0
        if wanted != has:
            what = (
                "job already exists"
                if not wanted
                else f"job exists with conflicting job modify index: {has}"
            )
            raise Refused(500, f"Enforcing job modify index {wanted}: {what}")

    def _check(self, job: dict[str, Any]) -> None:
        if not job.get("TaskGroups"):
            raise Refused(500, "1 error occurred:\n\t* Missing job task groups\n")
        if not job.get("Datacenters"):
            raise Refused(500, "1 error occurred:\n\t* Missing job datacenters\n")
        for group in job["TaskGroups"]:
            for task in group.get("Tasks") or ():
                if not task.get("Driver"):
                    raise Refused(500, "1 error occurred:\n\t* Missing task driver\n")

    def _put_job(self, job: dict[str, Any], found: dict[str, Any] | None) -> None:
        job.setdefault("Namespace", "default")
        job.setdefault("Region", "global")
        job.setdefault("Priority", 50)
        job["Version"] = found["Version"] + 1 if found is not None else 0
        job["Stop"] = False
        job["Status"] = "pending"
        job["SubmitTime"] = time.time_ns()
        index = self._cluster.state.touch("jobs")
        job["CreateIndex"] = found["CreateIndex"] if found is not None else index
        job["ModifyIndex"] = job["JobModifyIndex"] = index
        self._cluster.state.jobs[job["ID"]] = job

    def _registered(self, job: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
        return {
            "EvalID": evaluation["ID"],
            "EvalCreateIndex": evaluation["CreateIndex"],
            "JobModifyIndex": job["JobModifyIndex"],
            "Warnings": "",
            "Index": self._cluster.state.index,
            "LastContact": 0,
            "KnownLeader": True,
        }

    def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/job/:id/plan`: what the scheduler would do."""
        job = body.get("Job")
        if not job:
            raise Refused(400, "Job must be specified")
        self._check(job)
        failed = {}
        for group in job["TaskGroups"]:
            # As if nothing of it were there; enough for a job that is new.
            node, reasons = choose_node(self._cluster.state, {"Stop": False, **job}, group)
            if group["Count"] and node is None:
                failed[group["Name"]] = reasons
        return {"FailedTGAllocs": failed or None, "Warnings": "", "JobModifyIndex": 0, "Diff": None}

    def scale(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/job/:id/scale`."""
        target, count = body.get("Target") or {}, body.get("Count")
        name = target.get("Group", "")
        if target.get("Job", job_id) != job_id:
            raise Refused(400, "job ID in payload did not match URL")
        if not name:
            raise Refused(400, "missing task group name for scaling action")
        if count is not None and count < 0:
            raise Refused(400, "scaling action count can't be negative")
        job = self._cluster.state.jobs.get(job_id)
        if job is None:
            raise Refused(404, f'job "{job_id}" not found')
        group = next((each for each in job["TaskGroups"] if each["Name"] == name), None)
        if group is None:
            raise Refused(400, f'task group "{name}" specified for scaling does not exist in job')
        before, evaluation = group["Count"], None
        if count is not None:
            self._check_count(job, group, count)
            job = copy.deepcopy(job)
            self._put_job(job, self._cluster.state.jobs[job_id])
            next(each for each in job["TaskGroups"] if each["Name"] == name)["Count"] = count
            evaluation = self._scheduler.evaluate(job_id, "job-scaling")
        self._note_scaling(job_id, name, body, before)
        if evaluation is not None:
            return self._registered(job, evaluation)
        return {
            "EvalID": "",
            "EvalCreateIndex": 0,
            "JobModifyIndex": job["ModifyIndex"],
            "Warnings": "",
        }

    def _check_count(self, job: dict[str, Any], group: dict[str, Any], count: int) -> None:
        limits = group.get("Scaling") or {"Min": 0, "Max": count}
        if count < limits["Min"]:
            raise Refused(
                400, f"group count was less than scaling policy minimum: {count} < {limits['Min']}"
            )
        if count > limits["Max"]:
            raise Refused(
                400,
                f"group count was greater than scaling policy maximum: {count} > {limits['Max']}",
            )
        if self._cluster.faults.scaling_blocked or self._scheduler.is_deploying(job):
            raise Refused(400, "job scaling blocked due to active deployment")

    def _note_scaling(self, job_id: str, name: str, body: dict[str, Any], before: int) -> None:
        event = {
            "Time": time.time_ns(),
            "PreviousCount": before,
            "Count": body.get("Count"),
            "Message": body.get("Message", ""),
            "Error": bool(body.get("Error")),
            "Meta": body.get("Meta"),
            "CreateIndex": self._cluster.state.touch("scaling_event"),
        }
        events = self._cluster.state.scaling_events.setdefault((job_id, name), [])
        events.insert(0, event)
        del events[TRACKED_SCALING_EVENTS:]

    def scale_status(self, job_id: str) -> dict[str, Any]:
        """`GET /v1/job/:id/scale`."""
        job = self._cluster.state.jobs.get(job_id)
        if job is None:
            raise Refused(404, "job not found")
        groups = {}
        for group in job["TaskGroups"]:
            live = [
                each for each in self._cluster.state.allocs_of(job_id) if not each.is_server_over
            ]
            running = sum(each.client == "running" for each in live)
            groups[group["Name"]] = {
                "Desired": group["Count"],
                "Placed": sum(not each.is_client_over for each in live),
                "Running": running,
                "Healthy": running,
                "Unhealthy": 0,
                "Events": self._cluster.state.scaling_events.get((job_id, group["Name"])) or None,
            }
        return {
            "JobID": job_id,
            "Namespace": job["Namespace"],
            "JobCreateIndex": job["CreateIndex"],
            "JobModifyIndex": job["ModifyIndex"],
            "JobStopped": job["Stop"],
            "TaskGroups": groups,
        }

    def deregister(self, job_id: str, *, purge: bool) -> dict[str, Any]:
        """`DELETE /v1/job/:id`. An unknown one is no error."""
        job = self._cluster.state.jobs.get(job_id)
        if job is None:
            return {"EvalID": "", "EvalCreateIndex": 0, "JobModifyIndex": 0}
        job["Stop"] = True
        index = self._cluster.state.touch("jobs")
        if purge:
            del self._cluster.state.jobs[job_id]
            for name in [key for key in self._cluster.state.scaling_events if key[0] == job_id]:
                del self._cluster.state.scaling_events[name]
        self._cluster.spawn(
            self._scheduler.stop_all(job, self._cluster.faults.purge_lag_s if purge else 0.0)
        )
        return {"EvalID": str(uuid.uuid4()), "EvalCreateIndex": index, "JobModifyIndex": index}

    def force_evaluate(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/job/:id/evaluate`."""
        if job_id not in self._cluster.state.jobs:
            raise Refused(404, "job not found")
        due: frozenset[str] = frozenset()
        if (body.get("EvalOptions") or {}).get("ForceReschedule"):
            due = frozenset(
                each.alloc_id
                for each in self._cluster.state.allocs_of(job_id)
                if each.client == "failed"
            )
        evaluation = self._scheduler.evaluate(job_id, "job-register", due)
        return {
            "EvalID": evaluation["ID"],
            "EvalCreateIndex": evaluation["CreateIndex"],
            "JobModifyIndex": 0,
        }

    def stop_alloc(self, alloc_id: str) -> dict[str, Any]:
        """`POST /v1/allocation/:id/stop`: another one comes in its place."""
        alloc = self._cluster.state.allocs.get(alloc_id)
        if alloc is None:
            raise Refused(404, "alloc not found")
        alloc.migrate = True
        self._cluster.state.touch_alloc(alloc)
        evaluation = self._scheduler.evaluate(alloc.job["ID"], "alloc-stop")
        return {"EvalID": evaluation["ID"], "Index": self._cluster.state.index}
