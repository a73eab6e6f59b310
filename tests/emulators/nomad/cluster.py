"""The emulated cluster: servers that schedule, nodes that run, and time that passes faster."""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tests.emulators.nomad.faults import Faults
from tests.emulators.nomad.model import TRACKED_SCALING_EVENTS, Alloc, Node, State
from tests.emulators.nomad.placing import Changes, Wanted, choose_node, reconcile
from tests.emulators.nomad.tasks import TaskRunner, free_port

HEARTBEAT_S = 20.0
"""How long servers wait for a node that says nothing: its time to live and the grace on top."""
NO_LEADER = "No cluster leader"
_NS = 1e9
_DEFAULT_RESCHEDULE = {
    "Attempts": 0,
    "Interval": 0,
    "Delay": 30 * 10**9,
    "DelayFunction": "exponential",
    "MaxDelay": 3600 * 10**9,
    "Unlimited": True,
}


class Refused(Exception):  # noqa: N818 - the answer to a request
    """A request that is answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Cluster:
    """All that the API shows, without the API. `time_factor` shrinks every delay of the cluster's own."""

    def __init__(
        self,
        nodes: list[Node],
        *,
        time_factor: float = 1.0,
        images: frozenset[str] = frozenset(),
        has_engine: bool = False,
    ) -> None:
        self.state = State(nodes)
        self.faults = Faults()
        self.time_factor = time_factor
        self.images = images
        """Those that can be pulled."""
        self.has_engine = has_engine
        """Whether tasks of the driver `docker` are containers; else they are ordinary processes."""
        self.folder = Path(tempfile.mkdtemp(prefix="nomad-emulator-"))
        self.folder.chmod(0o755)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._eval_locks: dict[str, asyncio.Lock] = {}
        self._blocked: set[str] = set()
        self._deployments: dict[str, float] = {}

    async def close(self) -> None:
        """End everything that runs."""
        for task in self._tasks:
            task.cancel()
        runners = [each.runner for each in self.state.allocs.values() if each.runner is not None]
        await asyncio.gather(*(each.stop() for each in runners), return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        """Processes of tasks that run."""
        runners = (each.runner for each in self.state.allocs.values())
        return [each.pid for each in runners if each is not None and each.pid is not None]

    def spawn(self, work: Any) -> None:
        """Run something beside everything else, until the cluster is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- jobs --------------------------------------------------------------------------------------

    def register(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/jobs`."""
        job = body.get("Job")
        if not job:
            raise Refused(400, "Job must be specified")
        if not job.get("ID"):
            raise Refused(400, "Job ID hasn't been provided")
        found = self.state.jobs.get(job["ID"])
        if body.get("EnforceIndex"):
            self._enforce_index(found, int(body.get("JobModifyIndex") or 0))
        self._check(job)
        job = copy.deepcopy(job)
        self._put_job(job, found)
        if body.get("PreserveCounts") and found is not None:
            for group, before in zip(job["TaskGroups"], found["TaskGroups"], strict=False):
                group["Count"] = before["Count"]
        evaluation = self.evaluate(job["ID"], "job-register")
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
        index = self.state.touch("jobs")
        job["CreateIndex"] = found["CreateIndex"] if found is not None else index
        job["ModifyIndex"] = job["JobModifyIndex"] = index
        self.state.jobs[job["ID"]] = job

    def _registered(self, job: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
        return {
            "EvalID": evaluation["ID"],
            "EvalCreateIndex": evaluation["CreateIndex"],
            "JobModifyIndex": job["JobModifyIndex"],
            "Warnings": "",
            "Index": self.state.index,
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
            node, reasons = choose_node(self.state, {"Stop": False, **job}, group)
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
        job = self.state.jobs.get(job_id)
        if job is None:
            raise Refused(404, f'job "{job_id}" not found')
        group = next((each for each in job["TaskGroups"] if each["Name"] == name), None)
        if group is None:
            raise Refused(400, f'task group "{name}" specified for scaling does not exist in job')
        before, evaluation = group["Count"], None
        if count is not None:
            self._check_count(job, group, count)
            job = copy.deepcopy(job)
            self._put_job(job, self.state.jobs[job_id])
            next(each for each in job["TaskGroups"] if each["Name"] == name)["Count"] = count
            evaluation = self.evaluate(job_id, "job-scaling")
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
        if self.faults.scaling_blocked or self._is_deploying(job):
            raise Refused(400, "job scaling blocked due to active deployment")

    def _is_deploying(self, job: dict[str, Any]) -> bool:
        return self._deployments.get(job["ID"], 0.0) > time.monotonic()

    def _note_scaling(self, job_id: str, name: str, body: dict[str, Any], before: int) -> None:
        event = {
            "Time": time.time_ns(),
            "PreviousCount": before,
            "Count": body.get("Count"),
            "Message": body.get("Message", ""),
            "Error": bool(body.get("Error")),
            "Meta": body.get("Meta"),
            "CreateIndex": self.state.touch("scaling_event"),
        }
        events = self.state.scaling_events.setdefault((job_id, name), [])
        events.insert(0, event)
        del events[TRACKED_SCALING_EVENTS:]

    def scale_status(self, job_id: str) -> dict[str, Any]:
        """`GET /v1/job/:id/scale`."""
        job = self.state.jobs.get(job_id)
        if job is None:
            raise Refused(404, "job not found")
        groups = {}
        for group in job["TaskGroups"]:
            live = [each for each in self.state.allocs_of(job_id) if not each.is_server_over]
            running = sum(each.client == "running" for each in live)
            groups[group["Name"]] = {
                "Desired": group["Count"],
                "Placed": sum(not each.is_client_over for each in live),
                "Running": running,
                "Healthy": running,
                "Unhealthy": 0,
                "Events": self.state.scaling_events.get((job_id, group["Name"])) or None,
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
        job = self.state.jobs.get(job_id)
        if job is None:
            return {"EvalID": "", "EvalCreateIndex": 0, "JobModifyIndex": 0}
        job["Stop"] = True
        index = self.state.touch("jobs")
        if purge:
            del self.state.jobs[job_id]
            for name in [key for key in self.state.scaling_events if key[0] == job_id]:
                del self.state.scaling_events[name]
        self.spawn(self._stop_all(job, self.faults.purge_lag_s if purge else 0.0))
        return {"EvalID": str(uuid.uuid4()), "EvalCreateIndex": index, "JobModifyIndex": index}

    async def _stop_all(self, job: dict[str, Any], lag_s: float) -> None:
        await asyncio.sleep(lag_s)
        async with self._lock(job["ID"]):
            for each in self.state.allocs_of(job["ID"]):
                same = each.job["CreateIndex"] == job["CreateIndex"]
                if same and not each.is_server_over:
                    self._stop(each, "alloc not needed as job is stopped")

    # --- evaluations -------------------------------------------------------------------------------

    def evaluate(
        self, job_id: str, cause: str, due: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """Have the scheduler look at a job, in its own time."""
        index = self.state.touch("evals")
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
        self.state.evals[evaluation["ID"]] = evaluation
        self.spawn(self._schedule(evaluation, set(due)))
        return evaluation

    def _lock(self, job_id: str) -> asyncio.Lock:
        return self._eval_locks.setdefault(job_id, asyncio.Lock())

    async def _schedule(self, evaluation: dict[str, Any], due: set[str]) -> None:
        await asyncio.sleep(self.faults.placement_s)
        while self.faults.no_leader:
            await asyncio.sleep(0.02)
        job_id = evaluation["JobID"]
        async with self._lock(job_id):
            job = self.state.jobs.get(job_id)
            if job is None:
                evaluation["Status"] = "complete"
                return
            for group in job["TaskGroups"]:
                allocs = [
                    each
                    for each in self.state.allocs_of(job_id)
                    if each.job["CreateIndex"] == job["CreateIndex"]
                ]
                changes = reconcile(job, group, allocs, due)
                self._carry_out(job, group, changes, evaluation)
            self._set_status(job)
            evaluation["Status"] = "complete"
            evaluation["ModifyIndex"] = self.state.touch("evals")

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
        for each in self.state.allocs_of(job["ID"]):  # in place, as nothing of them changes
            if not each.is_server_over and not each.is_client_over:
                each.job = job

    def _place(
        self, job: dict[str, Any], group: dict[str, Any], wanted: Wanted, evaluation: dict[str, Any]
    ) -> None:
        node, reasons = choose_node(self.state, job, group)
        if self.faults.no_placement:
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
            self.state.touch_alloc(wanted.previous)
        alloc.port = free_port(node.ip)
        self.state.allocs[alloc.alloc_id] = alloc
        self.state.touch_alloc(alloc)
        update = job.get("Update") or {"MaxParallel": 1}
        if update.get("MaxParallel"):
            healthy_s = int(update.get("MinHealthyTime", 10 * _NS)) / _NS
            self._deployments[job["ID"]] = time.monotonic() + healthy_s * self.time_factor
        alloc.runner = TaskRunner(self, alloc, self.folder / alloc.alloc_id)
        alloc.runner.start()

    def _stop(self, alloc: Alloc, why: str) -> None:
        alloc.desired, alloc.desired_description = "stop", why
        self.state.touch_alloc(alloc)
        if alloc.runner is not None and not alloc.node.cut_off:
            self.spawn(alloc.runner.stop())

    def _reschedule_later(self, alloc: Alloc, group: dict[str, Any]) -> None:
        policy = {**_DEFAULT_RESCHEDULE, **(group.get("ReschedulePolicy") or {})}
        window_s = int(policy["Interval"]) / _NS * self.time_factor
        recent = [at for at in alloc.reschedules if time.monotonic() - at < window_s]
        if not policy["Unlimited"] and len(recent) >= int(policy["Attempts"]):
            return
        delay_s = int(policy["Delay"]) / _NS * 2 ** len(alloc.reschedules)
        delay_s = min(delay_s, int(policy["MaxDelay"]) / _NS)
        alloc.follow_up = str(uuid.uuid4())
        self.state.touch_alloc(alloc)
        self.spawn(self._reschedule(alloc, delay_s * self.time_factor))

    async def _reschedule(self, alloc: Alloc, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if not alloc.next_alloc:
            self.evaluate(alloc.job["ID"], "alloc-failure", frozenset({alloc.alloc_id}))

    def _set_status(self, job: dict[str, Any]) -> None:
        live = [
            each
            for each in self.state.allocs_of(job["ID"])
            if not each.is_server_over and not each.is_client_over
        ]
        waiting = job["ID"] in self._blocked and any(each["Count"] for each in job["TaskGroups"])
        job["Status"] = "running" if live else "pending" if waiting else "dead"

    def force_evaluate(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/job/:id/evaluate`."""
        if job_id not in self.state.jobs:
            raise Refused(404, "job not found")
        due: frozenset[str] = frozenset()
        if (body.get("EvalOptions") or {}).get("ForceReschedule"):
            due = frozenset(
                each.alloc_id for each in self.state.allocs_of(job_id) if each.client == "failed"
            )
        evaluation = self.evaluate(job_id, "job-register", due)
        return {
            "EvalID": evaluation["ID"],
            "EvalCreateIndex": evaluation["CreateIndex"],
            "JobModifyIndex": 0,
        }

    def stop_alloc(self, alloc_id: str) -> dict[str, Any]:
        """`POST /v1/allocation/:id/stop`: another one comes in its place."""
        alloc = self.state.allocs.get(alloc_id)
        if alloc is None:
            raise Refused(404, "alloc not found")
        alloc.migrate = True
        self.state.touch_alloc(alloc)
        evaluation = self.evaluate(alloc.job["ID"], "alloc-stop")
        return {"EvalID": evaluation["ID"], "Index": self.state.index}

    # --- what nodes report -------------------------------------------------------------------------

    def why_no_image(self, task: dict[str, Any]) -> str:
        """Why the driver cannot start a task at all; empty: it can."""
        image = task["Config"].get("image")
        if task["Driver"] not in ("docker", "podman") or image in self.images:
            return ""
        return f"Failed to pull `{image}`: Error response from daemon: manifest for {image} not found: manifest unknown"

    def report(self, alloc: Alloc, task: str, state: dict[str, Any]) -> None:
        """A task is in another state."""
        if alloc.node.cut_off:
            return
        alloc.tasks = {**alloc.tasks, task: state}
        if alloc.client == "lost":
            return
        before = alloc.client
        alloc.client, alloc.client_description = _status(state)
        if alloc.client == "running" and before != "running":
            alloc.running_since = time.monotonic()
        self.state.touch_alloc(alloc)
        if alloc.client == "failed" and not alloc.is_server_over:
            self.evaluate(alloc.job["ID"], "alloc-failure")
        if alloc.is_client_over:
            self._unblock()

    def ports_of(self, alloc: Alloc) -> bool:
        """Whether an allocation's port is mapped already."""
        if alloc.client != "running":
            return False
        return time.monotonic() - alloc.running_since >= self.faults.ports_missing_s

    def _unblock(self) -> None:
        blocked, self._blocked = self._blocked, set()
        for job_id in blocked:
            self.evaluate(job_id, "queued-allocs")

    # --- mishaps of nodes --------------------------------------------------------------------------

    def lose_node(self, node: Node, *, power: bool = True) -> None:
        """A node is not heard of any more; without `power` nothing runs on it either. Servers notice later."""
        node.cut_off = True
        if not power:
            for each in self.state.allocs.values():
                if each.node is node and each.runner is not None:
                    each.runner.kill()
        self.spawn(self._miss(node))

    async def _miss(self, node: Node) -> None:
        await asyncio.sleep(HEARTBEAT_S * self.time_factor)
        if not node.cut_off:
            return
        node.status = "down"
        self.state.touch("nodes")
        for job_id in {each.job["ID"] for each in self.state.allocs.values() if each.node is node}:
            self.evaluate(job_id, "node-update")

    def return_node(self, node: Node) -> None:
        """A node is back, with all that ran on it; what was placed elsewhere meanwhile is ended on it."""
        node.cut_off, node.status = False, "ready"
        self.state.touch("nodes")
        for each in self.state.allocs.values():
            if each.node is node and each.runner is not None:
                if each.is_server_over:
                    self.spawn(each.runner.stop())
                else:
                    self.report(each, each.group["Tasks"][0]["Name"], dict(each.runner.state))
        self._unblock()

    def allow_placement(self) -> None:
        """Nodes take allocations again."""
        self.faults.no_placement = False
        self._unblock()


def _status(state: dict[str, Any]) -> tuple[str, str]:
    if state["State"] == "dead":
        return (
            ("failed", "Failed tasks")
            if state["Failed"]
            else ("complete", "All tasks have completed")
        )
    if state["State"] == "running":
        return "running", "Tasks are running"
    return "pending", "No tasks have started"
