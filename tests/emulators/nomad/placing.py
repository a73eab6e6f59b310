"""Where the emulated scheduler puts allocations, and which it stops. Pure functions of the state.

The rules are those of the scheduler for services: failed allocations that are not rescheduled hold their places; when
there are too many, those that are told to move go first, then the highest indexes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.emulators.nomad.model import Alloc, Node, State, resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NOT_NEEDED = "alloc not needed due to job update"
_FLAGS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda left, right: left == right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "regexp": lambda left, right: bool(re.search(right, left)),
    "is_set": lambda left, right: bool(left),
}


@dataclass(slots=True)
class Wanted:
    """An allocation to be placed."""

    index: int
    previous: Alloc | None = None
    """The one in whose place it comes."""


@dataclass(slots=True)
class Changes:
    """What the scheduler wants of one group."""

    stop: list[tuple[Alloc, str]] = field(default_factory=list)
    place: list[Wanted] = field(default_factory=list)
    later: list[Alloc] = field(default_factory=list)
    """Failed ones to be rescheduled after a while."""


def reconcile(
    job: dict[str, Any], group: dict[str, Any], allocs: Iterable[Alloc], due: set[str]
) -> Changes:
    """What to stop and what to place. `due`: failed allocations whose time to be rescheduled has come."""
    changes = Changes()
    live = [
        each
        for each in allocs
        if not each.is_server_over and each.client not in ("complete", "lost")
    ]
    if job["Stop"] or group["Count"] == 0:
        changes.stop = [(each, NOT_NEEDED) for each in live]
        return changes
    lost = [each for each in live if each.node.status == "down" and not each.is_client_over]
    moving = [
        each for each in live if each.migrate and not each.is_client_over and each not in lost
    ]
    kept, again = [], []
    for each in live:
        if each in lost or each in moving or each.next_alloc:
            continue
        if each.client == "failed" and each.alloc_id in due:
            again.append(each)
            continue
        kept.append(each)
        if each.client == "failed" and not each.follow_up:
            changes.later.append(each)
    changes.stop += [(each, "alloc is lost since its node is down") for each in lost]
    surplus = len(kept) + len(moving) - group["Count"]
    for pool in (moving, kept):
        for each in sorted(pool, key=lambda alloc: -alloc.index)[: max(0, surplus)]:
            changes.stop.append((each, NOT_NEEDED))
            pool.remove(each)
            surplus -= 1
    changes.stop += [(each, "alloc is being migrated") for each in moving]
    changes.place = _placements(group, kept, [*moving, *again, *lost])
    return changes


def _placements(group: dict[str, Any], kept: list[Alloc], replaced: list[Alloc]) -> list[Wanted]:
    taken = {each.index for each in kept}
    room = group["Count"] - len(kept)
    place = []
    for each in sorted(replaced, key=lambda alloc: alloc.index)[: max(0, room)]:
        place.append(Wanted(each.index, each))
        taken.add(each.index)
    free = (number for number in range(group["Count"] + len(taken)) if number not in taken)
    place += [Wanted(next(free)) for _ in range(max(0, room - len(place)))]
    return place


def choose_node(
    state: State, job: dict[str, Any], group: dict[str, Any]
) -> tuple[Node | None, dict[str, Any]]:
    """The node with the most memory free of those that fit, or None; and the reasons against the others."""
    reasons: dict[str, Any] = {
        "NodesEvaluated": 0,
        "NodesFiltered": 0,
        "NodesAvailable": {},
        "ConstraintFiltered": {},
        "NodesExhausted": 0,
        "DimensionExhausted": {},
        "QuotaExhausted": None,
    }
    fitting = []
    ready = [node for node in state.nodes if node.status == "ready"]
    for name in job["Datacenters"]:
        inside = [node for node in ready if name in ("*", node.datacenter)]
        if name != "*":
            reasons["NodesAvailable"][name] = len(inside)
    for node in ready:
        if not any(name in ("*", node.datacenter) for name in job["Datacenters"]):
            continue
        reasons["NodesEvaluated"] += 1
        against = _filtered(node, job, group)
        if against:
            reasons["NodesFiltered"] += 1
            _add(reasons["ConstraintFiltered"], against)
            continue
        dimension = _exhausted(state.free_on(node), resources(group))
        if dimension:
            reasons["NodesExhausted"] += 1
            _add(reasons["DimensionExhausted"], dimension)
            continue
        fitting.append(node)
    best = max(fitting, key=lambda node: state.free_on(node)[1], default=None)
    return best, reasons


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _filtered(node: Node, job: dict[str, Any], group: dict[str, Any]) -> str:
    for task in group["Tasks"]:
        if task["Driver"] not in node.drivers:
            return "missing drivers"
    constraints = [*(job.get("Constraints") or ()), *(group.get("Constraints") or ())]
    for each in constraints:
        left = _looked_up(str(each.get("LTarget") or ""), node)
        right = str(each.get("RTarget") or "")
        operand = str(each.get("Operand") or "=")
        if not _FLAGS[operand](left, right):
            return f"{each.get('LTarget')} {operand} {right}".strip()
    return ""


def _looked_up(target: str, node: Node) -> str:
    name = target.removeprefix("${").removesuffix("}")
    if name == "node.datacenter":
        return node.datacenter
    return node.attributes.get(name, "")


def _exhausted(free: tuple[int, int, int], wanted: tuple[int, int, int]) -> str:
    for name, have, want in zip(("cpu", "memory", "disk"), free, wanted, strict=True):
        if want > have:
            return name
    return ""
