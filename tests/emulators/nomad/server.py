"""The HTTP interface of the emulated cluster, and how to run one in a test.

async with running_nomad(time_factor=0.05) as nomad:
    NomadConfig(address=nomad.url, driver="raw_exec")
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.emulators.nomad.answers import (
    as_json,
    read_body,
    read_duration,
    read_flag,
    send_half,
    stub_of_job,
    summary_of,
)
from tests.emulators.nomad.cluster import NO_LEADER, Cluster
from tests.emulators.nomad.model import Node, Refused, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_LONGEST_WAIT_S = 300.0
_WITHOUT_LEADER = ("/v1/agent/self", "/v1/agent/health", "/v1/status/leader")


@dataclass(slots=True)
class Nomad:
    """A running emulator."""

    url: str
    cluster: Cluster
    token: str

    @property
    def faults(self) -> Any:
        """What is to go wrong."""
        return self.cluster.faults


@asynccontextmanager
async def running_nomad(
    *,
    nodes: int | list[Node] = 2,
    time_factor: float = 0.02,
    token: str = "",
    images: tuple[str, ...] = ("python:3.12-slim",),
    has_engine: bool = False,
) -> AsyncIterator[Nomad]:
    """A cluster on the loopback. With `token`, requests without it are refused."""
    if isinstance(nodes, int):
        nodes = [Node(f"node-{n}", f"127.0.1.{n + 1}") for n in range(nodes)]
    cluster = Cluster(
        nodes, time_factor=time_factor, images=frozenset(images), has_engine=has_engine
    )
    api = _Api(cluster, token)
    runner = web.AppRunner(api.app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield Nomad(f"http://{host}:{port}", cluster, token)
    finally:
        await runner.cleanup()
        await cluster.close()


class _Api:
    def __init__(self, cluster: Cluster, token: str) -> None:
        self._cluster = cluster
        self._state: State = cluster.state
        self._token = token

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(middlewares=[self._around])
        get, put, post, delete = (
            app.router.add_get,
            app.router.add_put,
            app.router.add_post,
            app.router.add_delete,
        )
        get("/v1/jobs", self.jobs)
        get("/v1/job/{id}", self.job)
        get("/v1/job/{id}/allocations", self.job_allocations)
        get("/v1/job/{id}/evaluations", self.job_evaluations)
        get("/v1/job/{id}/scale", self.scale_status)
        get("/v1/job/{id}/deployments", self.nothing)
        get("/v1/job/{id}/summary", self.summary)
        get("/v1/allocations", self.allocations)
        get("/v1/allocation/{id}", self.allocation)
        get("/v1/evaluation/{id}", self.evaluation)
        get("/v1/nodes", self.nodes)
        get("/v1/node/{id}", self.node)
        get("/v1/agent/self", self.agent_self)
        get("/v1/agent/health", self.agent_health)
        get("/v1/status/leader", self.leader)
        for route in (put, post):
            route("/v1/jobs", self.register)
            route("/v1/job/{id}", self.register)
            route("/v1/job/{id}/plan", self.plan)
            route("/v1/job/{id}/scale", self.scale)
            route("/v1/job/{id}/evaluate", self.evaluate)
            route("/v1/allocation/{id}/stop", self.stop_allocation)
            route("/v1/validate/job", self.validate)
        delete("/v1/job/{id}", self.deregister)
        return app

    # --- around every request ----------------------------------------------------------------------

    @web.middleware
    async def _around(self, request: web.Request, handler: Any) -> web.StreamResponse:
        faults = self._cluster.faults
        name = f"{request.method} {request.path}"
        faults.count(_route(name))
        fault = faults.of_route(name)
        if fault is not None and not fault.truncated:
            return web.Response(status=fault.status, text=fault.body)
        if self._token and not self._is_allowed(request):
            given = request.headers.get("X-Nomad-Token") or request.headers.get("Authorization")
            return web.Response(
                status=403, text="ACL token not found" if given else "Permission denied"
            )
        if faults.no_leader and request.path not in _WITHOUT_LEADER:
            return web.Response(status=500, text=NO_LEADER)
        try:
            answer: web.StreamResponse = await handler(request)
        except Refused as refused:
            return web.Response(status=refused.status, text=str(refused))
        except web.HTTPMethodNotAllowed:
            return web.Response(status=405, text="Invalid method")
        except web.HTTPNotFound:
            return web.Response(status=404)
        if (
            fault is not None
            and isinstance(answer, web.Response)
            and isinstance(answer.body, bytes)
        ):
            return await send_half(request, answer.body)
        return answer

    def _is_allowed(self, request: web.Request) -> bool:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self._token in (request.headers.get("X-Nomad-Token"), bearer)

    async def _read(
        self, request: web.Request, table: str, value: Callable[[], Any]
    ) -> web.Response:
        """Answer a read, when its time has come."""
        faults = self._cluster.faults
        index = request.query.get("index", "0")
        if not index.isdecimal():
            raise Refused(400, "Invalid index")
        wait_s = read_duration(request.query.get("wait", "300s"))
        if int(index) and not faults.early_return:
            wait_s += wait_s / 16 * faults.chance.random()
            await self._state.block(table, int(index), min(wait_s, _LONGEST_WAIT_S))
        told = max(1, self._state.index_of(table))
        if faults.index_back:
            faults.index_back, told = False, 1
        answer = as_json(value())
        answer.headers.update(
            {"X-Nomad-Index": str(told), "X-Nomad-LastContact": "0", "X-Nomad-KnownLeader": "true"}
        )
        return answer

    # --- jobs --------------------------------------------------------------------------------------

    async def jobs(self, request: web.Request) -> web.Response:
        prefix, with_meta = request.query.get("prefix", ""), read_flag(request, "meta")

        def listing() -> list[dict[str, Any]]:
            found = [
                job for name, job in sorted(self._state.jobs.items()) if name.startswith(prefix)
            ]
            return [stub_of_job(self._cluster, job, meta=with_meta) for job in found]

        return await self._read(request, "jobs", listing)

    async def job(self, request: web.Request) -> web.Response:
        return await self._read(request, "jobs", lambda: self._job(request))

    def _job(self, request: web.Request) -> dict[str, Any]:
        job = self._state.jobs.get(request.match_info["id"])
        if job is None:
            raise Refused(404, "job not found")
        return job

    async def job_allocations(self, request: web.Request) -> web.Response:
        job_id, of_all = request.match_info["id"], read_flag(request, "all")

        def listing() -> list[dict[str, Any]]:
            job = self._state.jobs.get(job_id)
            found = self._state.allocs_of(job_id)
            if not of_all and job is not None:
                found = [each for each in found if each.job["CreateIndex"] == job["CreateIndex"]]
            return [each.stub() for each in found]

        return await self._read(request, "allocs", listing)

    async def job_evaluations(self, request: web.Request) -> web.Response:
        job_id = request.match_info["id"]
        return await self._read(
            request,
            "evals",
            lambda: [each for each in self._state.evals.values() if each["JobID"] == job_id],
        )

    async def summary(self, request: web.Request) -> web.Response:
        return await self._read(
            request, "jobs", lambda: summary_of(self._cluster, self._job(request))
        )

    async def nothing(self, request: web.Request) -> web.Response:
        return await self._read(request, "jobs", list)

    async def register(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        job_id = request.match_info.get("id")
        if job_id and (body.get("Job") or {}).get("ID") != job_id:
            raise Refused(400, "Job ID does not match")
        return as_json(self._cluster.jobs.register(body))

    async def plan(self, request: web.Request) -> web.Response:
        return as_json(self._cluster.jobs.plan(await read_body(request)))

    async def validate(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        if not body.get("Job"):
            raise Refused(400, "Job must be specified")
        return as_json(
            {"DriverConfigValidated": True, "ValidationErrors": None, "Error": "", "Warnings": ""}
        )

    async def scale(self, request: web.Request) -> web.Response:
        return as_json(self._cluster.jobs.scale(request.match_info["id"], await read_body(request)))

    async def scale_status(self, request: web.Request) -> web.Response:
        job_id = request.match_info["id"]
        return await self._read(request, "jobs", lambda: self._cluster.jobs.scale_status(job_id))

    async def evaluate(self, request: web.Request) -> web.Response:
        return as_json(
            self._cluster.jobs.force_evaluate(request.match_info["id"], await read_body(request))
        )

    async def deregister(self, request: web.Request) -> web.Response:
        try:
            purge = read_flag(request, "purge")
        except ValueError as error:
            raise Refused(500, str(error)) from error
        return as_json(self._cluster.jobs.deregister(request.match_info["id"], purge=purge))

    # --- the rest ----------------------------------------------------------------------------------

    async def allocations(self, request: web.Request) -> web.Response:
        prefix = request.query.get("prefix", "")
        return await self._read(
            request,
            "allocs",
            lambda: [
                each.stub() for name, each in self._state.allocs.items() if name.startswith(prefix)
            ],
        )

    async def allocation(self, request: web.Request) -> web.Response:
        def found() -> dict[str, Any]:
            alloc = self._state.allocs.get(request.match_info["id"])
            if alloc is None:
                raise Refused(404, "alloc not found")
            return alloc.full(ports=self._cluster.ports_of(alloc))

        return await self._read(request, "allocs", found)

    async def stop_allocation(self, request: web.Request) -> web.Response:
        return as_json(self._cluster.jobs.stop_alloc(request.match_info["id"]))

    async def evaluation(self, request: web.Request) -> web.Response:
        found = self._state.evals.get(request.match_info["id"])
        if found is None:
            raise Refused(404, "eval not found")
        return await self._read(request, "evals", lambda: found)

    async def nodes(self, request: web.Request) -> web.Response:
        return await self._read(
            request, "nodes", lambda: [node.stub(self._state.index) for node in self._state.nodes]
        )

    async def node(self, request: web.Request) -> web.Response:
        found = {node.node_id: node for node in self._state.nodes}.get(request.match_info["id"])
        if found is None:
            raise Refused(404, "node not found")
        return await self._read(request, "nodes", lambda: found.stub(self._state.index))

    async def agent_self(self, _request: web.Request) -> web.Response:
        return as_json({"config": {"Version": {"Version": "1.10.0"}}, "member": {}, "stats": {}})

    async def agent_health(self, _request: web.Request) -> web.Response:
        ok = not self._cluster.faults.no_leader
        server = {"ok": ok, "message": "ok" if ok else NO_LEADER}
        answer = as_json({"client": {"ok": True, "message": "ok"}, "server": server})
        answer.set_status(200 if ok else 500)
        return answer

    async def leader(self, _request: web.Request) -> web.Response:
        return as_json("" if self._cluster.faults.no_leader else "127.0.0.1:4647")


def _route(name: str) -> str:
    """A request without the ids in it."""
    return re.sub(r"/v1/(job|allocation|evaluation|node)/[^/]+", r"/v1/\1/:id", name)


async def _main() -> None:
    async with running_nomad() as nomad:
        sys.stdout.write(f"{nomad.url}\n")
        sys.stdout.flush()
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        await told.wait()


if __name__ == "__main__":
    asyncio.run(_main())
