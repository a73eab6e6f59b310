"""A container engine of our own making, on a Unix socket: containers are entries in a dict, and their main process is
a few lines that answer the driver's greeting. Its calls can be made to fail or hang.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from agentenv_backends.sandboxd import frames
from agentenv_backends.sandboxd.settings import HostFacts

Fault = Callable[[], Awaitable[web.StreamResponse | None]]
"""What happens instead of a call, or before it when it returns None."""

FACTS = HostFacts("user", "/slots", "6.1", "3.11", "3.11", process_limit="rlimit")


def status(code: int, message: str) -> Fault:
    """The engine refuses."""

    async def fault() -> web.StreamResponse:
        return web.json_response({"message": message}, status=code)

    return fault


def after(event: asyncio.Event) -> Fault:
    """The engine answers when `event` is set."""

    async def fault() -> None:
        await event.wait()

    return fault


@dataclass
class FakeContainer:
    name: str
    options: dict[str, Any]
    state: str = "created"
    created: float = field(default_factory=time.time)
    main: MainProcess | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    def end(self, exit_code: int, *, out_of_memory: bool = False) -> None:
        self.state = "exited"
        if out_of_memory:
            self.events.append({"Action": "oom"})
        attributes = {"exitCode": str(exit_code)}
        self.events.append({"Action": "die", "Actor": {"Attributes": attributes}})
        if self.main is not None:
            self.main.transport.close()


class MainProcess(asyncio.Protocol):
    """What the stream of a container leads to: takes the server it is sent, then answers frames."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.program = b""
        self.mute = False
        self._reader = frames.FrameReader()

    def say(self, data: bytes, kind: int = 1) -> None:
        self.transport.write(struct.pack(">B3xI", kind, len(data)) + data)

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(self._without_program(data)):
            if not self.mute:
                header = (
                    json.dumps(FACTS.to_json()).encode() if frame.kind == frames.HELLO else b"{}"
                )
                self.say(
                    frames.encode(
                        frames.REPLY,
                        channel=frame.channel,
                        request_id=frame.request_id,
                        header=header,
                    )
                )

    def _without_program(self, data: bytes) -> bytes:
        size = 8 + int.from_bytes(self.program[:8], "big") if len(self.program) >= 8 else 8
        while data and len(self.program) < size:
            taken = data[: size - len(self.program)]
            self.program += taken
            data = data[len(taken) :]
            if size == 8 and len(self.program) == 8:
                size += int.from_bytes(self.program, "big")
        return data


class FakeEngine:
    """`faults[call]` are used up one after another; calls are `create`, `start`, `attach`, `remove`, `info`, ..."""

    def __init__(self) -> None:
        self.url = ""
        self.storage = "extfs"
        """The file system below its containers' own."""
        self.containers: dict[str, FakeContainer] = {}
        self.images = {"tools:1": {"Id": "sha256:1", "Config": {}}}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.calls: list[str] = []
        self.on_start: Callable[[FakeContainer], None] = lambda _: None
        self._all: dict[str, FakeContainer] = {}

    def app(self) -> web.Application:
        app = web.Application()
        version = "/{version:v[0-9.]+}"
        for call, method, path, handler in (
            ("version", "GET", "/version", self._version),
            ("version", "GET", version + "/version", self._version),
            ("info", "GET", version + "/info", self._info),
            ("image", "GET", version + "/images/{name}/json", self._image),
            ("pull", "POST", version + "/images/create", self._pull),
            ("create", "POST", version + "/containers/create", self._create),
            ("list", "GET", version + "/containers/json", self._list),
            ("networks", "GET", version + "/networks", self._networks),
            ("attach", "POST", version + "/containers/{name}/attach", self._attach),
            ("start", "POST", version + "/containers/{name}/start", self._start),
            ("remove", "DELETE", version + "/containers/{name}", self._remove),
            ("events", "GET", version + "/events", self._events),
        ):
            app.router.add_route(method, path, self._with_faults(call, handler))
        return app

    def _with_faults(self, call: str, handler: Any) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.calls.append(call)
            if self.faults[call]:
                answer = await self.faults[call].popleft()()
                if answer is not None:
                    return answer
            answer = await handler(request)
            assert isinstance(answer, web.StreamResponse)
            return answer

        return handle

    def _found(self, request: web.Request) -> FakeContainer:
        name = request.match_info["name"]
        if name not in self.containers:
            raise web.HTTPNotFound(
                text=json.dumps({"message": f"No such container: {name}"}),
                content_type="application/json",
            )
        return self.containers[name]

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41"})

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "OSType": "linux",
                "Driver": "overlay2",
                "DriverStatus": [["Backing Filesystem", self.storage]],
                "MemoryLimit": True,
                "PidsLimit": True,
                "SecurityOptions": ["name=seccomp,profile=default"],
                "SystemTime": datetime.now(UTC).isoformat(),
            }
        )

    async def _image(self, request: web.Request) -> web.Response:
        image = self.images.get(request.match_info["name"])
        if image is None:
            return web.json_response({"message": "No such image"}, status=404)
        return web.json_response(image)

    async def _pull(self, request: web.Request) -> web.Response:
        name = request.query["fromImage"]
        error = {"errorDetail": {"message": f"manifest for {name} not found"}}
        return web.Response(text=json.dumps(error) + "\n")

    async def _create(self, request: web.Request) -> web.Response:
        name = request.query["name"]
        self.containers[name] = self._all[name] = FakeContainer(name, await request.json())
        return web.json_response({"Id": name}, status=201)

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response(
            [
                {
                    "Id": each.name,
                    "Names": ["/" + each.name],
                    "State": each.state,
                    "Created": int(each.created),
                    "Labels": each.options["Labels"],
                }
                for each in self.containers.values()
            ]
        )

    async def _networks(self, _: web.Request) -> web.Response:
        return web.json_response([])

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        container = self._found(request)
        transport = request.transport
        assert transport is not None
        transport.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        container.main = MainProcess(transport)
        transport.set_protocol(container.main)
        await asyncio.Event().wait()
        raise AssertionError

    async def _start(self, request: web.Request) -> web.Response:
        container = self._found(request)
        container.state = "running"
        self.on_start(container)
        return web.Response(status=204)

    async def _remove(self, request: web.Request) -> web.Response:
        container = self._found(request)
        container.end(137)
        del self.containers[container.name]
        return web.Response(status=204)

    async def _events(self, request: web.Request) -> web.Response:
        (name,) = json.loads(request.query["filters"])["container"]
        lines = [json.dumps(event) for event in self._all[name].events]
        return web.Response(text="\n".join(lines) + "\n")


@asynccontextmanager
async def running_engine(folder: Path) -> AsyncIterator[FakeEngine]:
    """A fake engine that listens; its address is its `url`."""
    engine = FakeEngine()
    path = folder / "docker.sock"
    runner = web.AppRunner(engine.app(), shutdown_timeout=0.01)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    engine.url = f"unix://{path}"
    try:
        yield engine
    finally:
        await runner.cleanup()
