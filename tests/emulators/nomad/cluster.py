"""The emulated cluster: servers that schedule, nodes that run, and time that passes faster."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.emulators.nomad.faults import Faults
from tests.emulators.nomad.jobs import Jobs
from tests.emulators.nomad.model import Alloc, Node, State
from tests.emulators.nomad.scheduler import Scheduler

HEARTBEAT_S = 20.0
"""How long servers wait for a node that says nothing: its time to live and the grace on top."""
NO_LEADER = "No cluster leader"


class Cluster:
    """All that the API shows, without the API. What nodes run and report is here; what servers do is in `jobs` and
    `scheduler`.

    `time_factor` shrinks every delay of the cluster's own.
    """

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
        self.scheduler = Scheduler(self)
        self.jobs = Jobs(self)

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
            self.scheduler.evaluate(alloc.job["ID"], "alloc-failure")
        if alloc.is_client_over:
            self.scheduler.unblock()

    def ports_of(self, alloc: Alloc) -> bool:
        """Whether an allocation's port is mapped already."""
        if alloc.client != "running":
            return False
        return time.monotonic() - alloc.running_since >= self.faults.ports_missing_s

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
            self.scheduler.evaluate(job_id, "node-update")

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
        self.scheduler.unblock()

    def allow_placement(self) -> None:
        """Nodes take allocations again."""
        self.faults.no_placement = False
        self.scheduler.unblock()


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
