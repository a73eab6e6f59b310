"""Allocations as the cluster lists them, and what their states and events mean. Frozen data and pure functions.

A listing says more than its status: an allocation that is `pending` after its task has ended is not starting but
waiting to be restarted, and one that is `failed` may or may not be placed anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from agentenv_backends.nomad.job import PORT, TASK

if TYPE_CHECKING:
    from collections.abc import Mapping

_INDEX = re.compile(r"\[(\d+)\]$")
_ENDED = ("complete", "failed", "lost")
_TOLD = 3
"""Events that tell why something is as it is: the last ones."""
_UNIMPORTANT = ("Received", "Task Setup", "Driver", "Started")
_IMAGE_SIGNS = ("pull", "image", "manifest", "repository")
_PERMANENT_SIGNS = (
    "not found",
    "no such",
    "manifest unknown",
    "denied",
    "invalid reference",
    "does not exist",
    "unauthorized",
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an allocation's task."""

    kind: str
    """`Started`, `Terminated`, `Driver Failure`, `Restarting`, ..."""
    message: str
    details: Mapping[str, str]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From a listing."""
        details = {str(name): str(value) for name, value in (values.get("Details") or {}).items()}
        return cls(str(values.get("Type", "?")), str(values.get("DisplayMessage") or ""), details)

    def __str__(self) -> str:
        oom = " (out of memory)" if self.details.get("oom_killed") == "true" else ""
        return f"{self.kind}{oom}: {self.message}" if self.message else f"{self.kind}{oom}"


@dataclass(frozen=True, slots=True)
class Allocation:
    """An allocation, as of a listing."""

    allocation_id: str
    index: int
    """Its place in the group; when the count is lowered, the highest go."""
    node: str
    desired: str
    """`run`, `stop` or `evict`."""
    status: str
    """`pending`, `running`, `complete`, `failed`, `lost` or `unknown`; what else there may be is taken for none of
    these."""
    description: str
    task_state: str
    restarts: int
    events: tuple[Event, ...]
    is_replaced: bool
    """There is another in its place, or will be."""

    @classmethod
    def read(cls, stub: Mapping[str, Any]) -> Self:
        """From a listing. Raises `KeyError` for what is no allocation."""
        task = (stub.get("TaskStates") or {}).get(TASK) or {}
        place = _INDEX.search(stub["Name"])
        return cls(
            allocation_id=stub["ID"],
            index=int(place[1]) if place else 0,
            node=stub.get("NodeName") or stub.get("NodeID") or "?",
            desired=stub["DesiredStatus"],
            status=stub["ClientStatus"],
            description=stub.get("DesiredDescription") or stub.get("ClientDescription") or "",
            task_state=task.get("State") or "pending",
            restarts=int(task.get("Restarts") or 0),
            events=tuple(Event.read(event) for event in task.get("Events") or ()),
            is_replaced=bool(stub.get("NextAllocation") or stub.get("FollowupEvalID")),
        )

    @property
    def is_up(self) -> bool:
        """Whether its host runs and is meant to."""
        return self.desired == "run" and self.status == "running" and self.task_state == "running"

    @property
    def is_over(self) -> bool:
        """Whether no host will ever run in it again."""
        return self.desired != "run" or self.status in _ENDED

    @property
    def holds_place(self) -> bool:
        """Whether the scheduler counts it among those it has to run."""
        return self.desired == "run" and self.status not in ("complete", "lost")

    @property
    def is_stuck(self) -> bool:
        """Whether it has failed for good, and holds its place all the same."""
        return self.holds_place and self.status == "failed" and not self.is_replaced

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more, as far as its node told."""
        return self.status in _ENDED

    @property
    def lacks_image(self) -> bool:
        """Whether its image cannot be had, however often one asks."""
        return any(
            event.kind == "Driver Failure"
            and any(sign in event.message.lower() for sign in _IMAGE_SIGNS)
            and any(sign in event.message.lower() for sign in _PERMANENT_SIGNS)
            for event in self.events
        )

    def story(self) -> str:
        """What became of it, for people."""
        state = self.status
        if self.status == "pending" and self.restarts:
            state = f"waiting to be restarted ({self.restarts} restarts so far)"
        elif self.status == "lost":
            state = "lost with its node"
        elif self.is_over and self.status in ("pending", "running"):
            state = f"told to {self.desired}"
        if self.is_over and self.is_replaced:
            state += ", rescheduled"
        telling = [event for event in self.events if event.kind not in _UNIMPORTANT][-_TOLD:]
        parts = [
            f"allocation {self.allocation_id[:8]} on node {self.node} is {state}",
            self.description,
            *(str(event) for event in telling),
        ]
        return "; ".join(filter(None, parts))


def address_of(allocation: Mapping[str, Any]) -> tuple[str, int] | None:
    """Where an allocation's host listens, from its full description; None while that is not mapped."""
    shared = (allocation.get("AllocatedResources") or {}).get("Shared") or {}
    for port in shared.get("Ports") or ():
        if port["Label"] == PORT and port.get("Value"):
            return str(port["HostIP"]), int(port["Value"])
    for network in shared.get("Networks") or ():
        for port in (*(network.get("DynamicPorts") or ()), *(network.get("ReservedPorts") or ())):
            if port["Label"] == PORT and port.get("Value"):
                return str(network["IP"]), int(port["Value"])
    return None


def why_not_placed(metric: Mapping[str, Any]) -> str:
    """Why the scheduler found no node, and which settings are about that, from its `FailedTGAllocs`."""
    reasons = []
    evaluated = int(metric.get("NodesEvaluated") or 0)
    available = {
        name: count for name, count in (metric.get("NodesAvailable") or {}).items() if not count
    }
    if available or not evaluated:
        reasons.append(
            f"no node in datacenters {', '.join(available) or 'of the job'} and its node pool "
            "(`datacenters`, `node_pool`)"
        )
    for constraint, nodes in (metric.get("ConstraintFiltered") or {}).items():
        setting = "driver" if "driver" in constraint else "constraints"
        reasons.append(f"{constraint} rules out {nodes} nodes (`{setting}`)")
    for dimension, nodes in (metric.get("DimensionExhausted") or {}).items():
        setting = _SETTINGS.get(dimension.split(":")[0].split()[0], "host resources")
        reasons.append(f"{dimension} is used up on {nodes} nodes ({setting})")
    reasons += [f"the quota is used up: {quota}" for quota in metric.get("QuotaExhausted") or ()]
    return "; ".join(reasons) or "the scheduler does not say why"


_SETTINGS = {
    "memory": "`host_memory_mb`, or `slots` times `memory_mb`",
    "cpu": "`cpu_mhz`",
    "disk": "`disk_mb`, `tmp_mb`, `slots`",
    "network": "ports of the nodes",
}
