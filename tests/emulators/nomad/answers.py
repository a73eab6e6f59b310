"""Reading what the API is sent, and the shapes of what it answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.emulators.nomad.model import Refused

if TYPE_CHECKING:
    from tests.emulators.nomad.cluster import Cluster

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def as_json(value: Any) -> web.Response:
    """An answer."""
    return web.Response(
        body=json.dumps(value).encode(), headers={"Content-Type": "application/json"}
    )


async def send_half(request: web.Request, body: bytes) -> web.StreamResponse:
    """An answer that breaks off, though it said how long it is."""
    answer = web.StreamResponse(headers={"Content-Length": str(len(body))})
    await answer.prepare(request)
    await answer.write(body[: len(body) // 2])
    assert request.transport is not None
    request.transport.close()
    return answer


async def read_body(request: web.Request) -> dict[str, Any]:
    """The object that was sent. Raises `Refused`."""
    try:
        value = await request.json()
    except ValueError as error:
        raise Refused(400, f"{error}") from error
    if not isinstance(value, dict):
        raise Refused(400, "json: cannot unmarshal")
    return value


def read_flag(request: web.Request, name: str) -> bool:
    """A parameter that is true or false. Raises `ValueError`."""
    text = request.query.get(name, "false")
    if text not in (*_TRUE, *_FALSE):
        raise ValueError(f'Failed to parse value of "{name}" ("{text}") as a bool')
    return text in _TRUE


def read_duration(text: str) -> float:
    """Seconds, of `1m30s`. Raises `Refused`."""
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text):
        raise Refused(400, "Invalid wait time")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def stub_of_job(cluster: Cluster, job: dict[str, Any], *, meta: bool) -> dict[str, Any]:
    """A job as lists show it."""
    stub = {
        **{name: job.get(name) for name in ("ID", "Name", "Namespace", "Datacenters", "Type")},
        **{name: job[name] for name in ("Priority", "Stop", "Status", "SubmitTime")},
        **{name: job[name] for name in ("CreateIndex", "ModifyIndex", "JobModifyIndex")},
        "ParentID": "",
        "NodePool": job.get("NodePool", "default"),
        "Periodic": False,
        "ParameterizedJob": False,
        "StatusDescription": "",
        "JobSummary": summary_of(cluster, job),
    }
    return stub | ({"Meta": job.get("Meta")} if meta else {})


def summary_of(cluster: Cluster, job: dict[str, Any]) -> dict[str, Any]:
    """How many allocations of a job are in which state."""
    names = {
        "complete": "Complete",
        "failed": "Failed",
        "running": "Running",
        "pending": "Starting",
    }
    names |= {"lost": "Lost", "unknown": "Unknown"}
    groups = {}
    for group in job["TaskGroups"]:
        counts = dict.fromkeys(("Queued", *names.values()), 0)
        for each in cluster.state.allocs_of(job["ID"]):
            counts[names[each.client]] += 1
        held = counts["Running"] + counts["Starting"]
        counts["Queued"] = max(0, group["Count"] - held) if not job["Stop"] else 0
        groups[group["Name"]] = counts
    return {
        "JobID": job["ID"],
        "Namespace": job["Namespace"],
        "Summary": groups,
        "Children": {"Pending": 0, "Running": 0, "Dead": 0},
        "CreateIndex": job["CreateIndex"],
        "ModifyIndex": job["ModifyIndex"],
    }
