"""The tables of the emulated cluster: nodes, jobs, evaluations, allocations, and the index that grows with every
change.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.emulators.nomad.tasks import TaskRunner

EVENTS_KEPT = 10
TRACKED_SCALING_EVENTS = 20
SERVER_OVER = ("stop", "evict")
CLIENT_OVER = ("complete", "failed", "lost")


class Refused(Exception):  # noqa: N818 - the answer to a request
    """A request that is answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class Node:
    """A machine of the cluster; its address is one of the loopback's."""

    name: str
    ip: str
    datacenter: str = "dc1"
    cpu: int = 8000
    memory_mb: int = 64_000
    disk_mb: int = 1_000_000
    drivers: tuple[str, ...] = ("raw_exec", "exec", "docker")
    attributes: dict[str, str] = field(default_factory=dict)
    status: str = "ready"
    cut_off: bool = False
    """It cannot reach the servers: nothing that happens on it is heard of."""
    node_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def stub(self, index: int) -> dict[str, Any]:
        """As nodes are listed."""
        return {
            "ID": self.node_id,
            "Name": self.name,
            "Address": self.ip,
            "Datacenter": self.datacenter,
            "NodePool": "default",
            "NodeClass": "",
            "Version": "1.10.0",
            "Attributes": dict(self.attributes),
            "Drain": False,
            "SchedulingEligibility": "eligible",
            "Status": self.status,
            "StatusDescription": "",
            "Drivers": {
                name: {"Detected": True, "Healthy": True, "HealthDescription": "Healthy"}
                for name in self.drivers
            },
            "LastDrain": None,
            "CreateIndex": 1,
            "ModifyIndex": index,
        }


@dataclass(slots=True)
class Alloc:
    """An allocation as servers know it."""

    job: dict[str, Any]
    group: dict[str, Any]
    name: str
    node: Node
    eval_id: str
    previous: str = ""
    alloc_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    desired: str = "run"
    desired_description: str = ""
    client: str = "pending"
    client_description: str = "No tasks have started"
    migrate: bool = False
    next_alloc: str = ""
    follow_up: str = ""
    reschedules: tuple[float, ...] = ()
    port: int = 0
    running_since: float = 0.0
    create_index: int = 0
    modify_index: int = 0
    create_time: int = field(default_factory=time.time_ns)
    modify_time: int = 0
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    runner: TaskRunner | None = None

    @property
    def index(self) -> int:
        """Its place in the group."""
        return int(self.name.rpartition("[")[2].rstrip("]"))

    @property
    def is_server_over(self) -> bool:
        return self.desired in SERVER_OVER

    @property
    def is_client_over(self) -> bool:
        return self.client in CLIENT_OVER

    @property
    def uses(self) -> tuple[int, int, int]:
        """Processor share, memory and disk that it takes from its node."""
        return resources(self.group)

    def stub(self) -> dict[str, Any]:
        """As allocations are listed: without ports."""
        return {
            "ID": self.alloc_id,
            "EvalID": self.eval_id,
            "Name": self.name,
            "Namespace": self.job["Namespace"],
            "NodeID": self.node.node_id,
            "NodeName": self.node.name,
            "JobID": self.job["ID"],
            "JobType": self.job["Type"],
            "JobVersion": self.job["Version"],
            "TaskGroup": self.group["Name"],
            "DesiredStatus": self.desired,
            "DesiredDescription": self.desired_description,
            "DesiredTransition": {"Migrate": self.migrate or None},
            "ClientStatus": self.client,
            "ClientDescription": self.client_description,
            "TaskStates": self.tasks or None,
            "DeploymentStatus": None,
            "FollowupEvalID": self.follow_up,
            "NextAllocation": self.next_alloc,
            "RescheduleTracker": None,
            "PreemptedAllocations": None,
            "PreemptedByAllocation": "",
            "CreateIndex": self.create_index,
            "ModifyIndex": self.modify_index,
            "CreateTime": self.create_time,
            "ModifyTime": self.modify_time,
        }

    def full(self, *, ports: bool) -> dict[str, Any]:
        """As one allocation is described."""
        label = self.group["Networks"][0]["DynamicPorts"][0]["Label"]
        mapped = {"Label": label, "Value": self.port, "To": 0}
        network = {"Mode": "host", "Device": "lo", "IP": self.node.ip, "DynamicPorts": [mapped]}
        return {
            **self.stub(),
            "Job": self.job,
            "PreviousAllocation": self.previous,
            "AllocModifyIndex": self.modify_index,
            "AllocatedResources": {
                "Tasks": {},
                "Shared": {
                    "Networks": [network] if ports else None,
                    "Ports": [{**mapped, "HostIP": self.node.ip}] if ports else None,
                    "DiskMB": self.uses[2],
                },
            },
            "NetworkStatus": None,
            "Metrics": {},
        }


def resources(group: dict[str, Any]) -> tuple[int, int, int]:
    """Processor share, memory and disk of a group."""
    tasks = [task.get("Resources") or {} for task in group["Tasks"]]
    disk = (group.get("EphemeralDisk") or {}).get("SizeMB") or 300
    cpu = sum(int(each.get("CPU") or 100) for each in tasks)
    return cpu, sum(int(each.get("MemoryMB") or 300) for each in tasks), int(disk)


class State:
    """All tables. Whoever changes one calls `touch` with its name."""

    def __init__(self, nodes: list[Node]) -> None:
        self.index = 10
        self.nodes = nodes
        self.jobs: dict[str, dict[str, Any]] = {}
        self.allocs: dict[str, Alloc] = {}
        self.evals: dict[str, dict[str, Any]] = {}
        self.scaling_events: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._table_index: dict[str, int] = {}
        self._changed = asyncio.Event()

    def touch(self, table: str) -> int:
        """Something in the table has changed; returns the new index."""
        self.index += 1
        self._table_index[table] = self.index
        self._changed.set()
        self._changed = asyncio.Event()
        return self.index

    def touch_alloc(self, alloc: Alloc) -> None:
        """An allocation has changed."""
        alloc.modify_index = self.touch("allocs")
        alloc.modify_time = time.time_ns()
        alloc.create_index = alloc.create_index or alloc.modify_index

    def index_of(self, table: str) -> int:
        """Of the table's last change."""
        return self._table_index.get(table, 1)

    async def block(self, table: str, index: int, wait_s: float) -> None:
        """Return when the table's index is above the given one, or after a while."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while self.index_of(table) <= index:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    def allocs_of(self, job_id: str) -> list[Alloc]:
        """Allocations of whatever has had that name."""
        return [each for each in self.allocs.values() if each.job["ID"] == job_id]

    def free_on(self, node: Node) -> tuple[int, int, int]:
        """What is left on a node: processor share, memory, disk."""
        taken = [
            each.uses
            for each in self.allocs.values()
            if each.node is node and not each.is_client_over
        ]
        have = (node.cpu, node.memory_mb, node.disk_mb)
        cpu, memory, disk = (size - sum(use[n] for use in taken) for n, size in enumerate(have))
        return cpu, memory, disk
