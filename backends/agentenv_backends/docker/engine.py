"""Our calls to a container engine. Each has a deadline, and each failure is an `EngineError` that names
the engine, the call and the reason.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

import aiodocker
import aiohttp

from agentenv_backends.docker._network_calls import REMOVAL_S, NetworkCalls
from agentenv_backends.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence
    from types import TracebackType

    from agentenv_backends.docker.stream import AttachedStream

T = TypeVar("T")
_log = logging.getLogger(__name__)

CALL_S = 30.0
"""Deadline of a call that has none of its own; the engine answers most within milliseconds."""
_LOOK_S = 0.25
_STANDSTILL_S = 1.5
"""An engine that does not even say its version for so long stands still: nothing is to be waited for."""
_ENDING_S = 3.0
"""How long to wait for the engine's word on why a container ended."""
_CLOSE_S = 2.0
_REMOVAL_POLL_S = 0.05
_UPGRADED, _BAD_REQUEST, _NOT_FOUND, _CONFLICT, _SERVER_ERROR = 101, 400, 404, 409, 500
_UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}
_NO_ENGINE = (
    "; is it running (`systemctl start docker`), may this user use it (group `docker`), or is it another one "
    "(docker_host, DOCKER_HOST)?"
)
_UNREACHABLE = 900
"""What aiodocker says when there is no connection."""
_EXIT_CODES = {"137": " (killed)", "143": " (asked to end)", "127": " (its program was not found)"}


@dataclass(frozen=True, slots=True)
class ContainerEntry:
    """A container as the engine lists it."""

    name: str
    state: str
    """`created`, `running`, `paused`, `exited`, `removing`, `dead`, ..."""
    created: float
    """In seconds since the epoch, by the engine's clock."""
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image as the engine lists it."""

    image_id: str
    name: str
    """One of its names; its id where it has none."""
    size: int
    used: str
    """When it was made or named last, as text that sorts."""


class Engine(NetworkCalls):
    """One client of a container engine, for use in an `async with`.

    `url` is `unix://`, `tcp://` or `ssh://`; None: as the `docker` command finds it (DOCKER_HOST, its context, the
    usual sockets). Making one contacts nobody.
    """

    def __init__(self, url: str | None = None, *, call_s: float = CALL_S) -> None:
        self._call_s = call_s
        self.name = (
            f"the Docker engine at {url or os.environ.get('DOCKER_HOST') or 'its usual place'}"
        )
        try:
            self._docker = aiodocker.Docker(url)
        except (AssertionError, ValueError, OSError, aiodocker.DockerError) as error:
            reason = str(error) or "there is no socket where one is expected"
            raise EngineError(f"{self.name} cannot be found: {reason}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of its connections. Idempotent."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._docker.close()
        except TimeoutError:
            _log.debug("%s: connections to it do not end", self.name)

    # --- the engine itself -------------------------------------------------------------------------

    async def version(self) -> dict[str, Any]:
        """What it is, and which version of the interface it speaks."""
        return await self._call("say its version", self._docker.version())

    async def info(self) -> dict[str, Any]:
        """What it and its machine can do."""
        return dict(await self._call("describe itself", self._docker.system.info()))

    async def clock_offset_s(self) -> float:
        """How far its clock is ahead of ours."""
        info = await self.info()
        return datetime.fromisoformat(info["SystemTime"]).timestamp() - time.time()

    # --- images ------------------------------------------------------------------------------------

    async def find_image(self, name: str) -> dict[str, Any] | None:
        """The description of an image it has; None when it has no such image."""
        try:
            return await self._call(f"look up image {name}", self._docker.images.inspect(name))
        except EngineError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def pull(self, name: str, timeout_s: float) -> None:
        """Fetch an image from its registry."""
        await self._call(f"pull image {name}", self._docker.images.pull(name), timeout_s)

    async def build(
        self,
        context: IO[bytes],
        tag: str,
        dockerfile: str,
        build_args: Mapping[str, str],
        *,
        pull: bool,
        timeout_s: float,
    ) -> None:
        """Build an image from a tar archive, in which `dockerfile` says how."""
        building = self._docker.images.build(
            fileobj=context,
            encoding="identity",
            path_dockerfile=dockerfile,
            tag=tag,
            buildargs=dict(build_args),
            pull=pull,
            rm=True,
            forcerm=True,
        )
        await self._call(f"build image {tag}", building, timeout_s)

    async def import_image(
        self,
        layer: IO[bytes],
        repository: str,
        tag: str,
        labels: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        """Make an image of one layer, a tar archive. Labels may hold letters, digits, `.` and `-`."""
        query = [("fromSrc", "-"), ("repo", repository), ("tag", tag)]
        query += [("changes", f"LABEL {name}={value}") for name, value in labels.items()]
        what = f"import image {repository}:{tag}"
        await self._call(what, self._import(query, layer), timeout_s)

    async def _import(self, query: list[tuple[str, str]], layer: IO[bytes]) -> None:
        url = self._url("images/create")
        headers = {"Content-Type": "application/x-tar"}
        async with self._docker.session.post(
            url, params=query, data=layer, headers=headers
        ) as answer:
            await _check(answer)
            async for line in answer.content:
                if error := json.loads(line).get("error"):
                    raise aiodocker.DockerError(_SERVER_ERROR, str(error))

    async def save_image(self, image_id: str, target: IO[bytes], timeout_s: float) -> None:
        """Write an image as an archive, with all its layers, to a file."""
        await self._call(f"save image {image_id}", self._save(image_id, target), timeout_s)

    async def _save(self, image_id: str, target: IO[bytes]) -> None:
        async with self._docker.session.get(self._url(f"images/{image_id}/get")) as answer:
            await _check(answer)
            async for chunk in answer.content.iter_chunked(1 << 20):
                await asyncio.to_thread(target.write, chunk)

    async def tag_image(self, image_id: str, repository: str, tag: str) -> None:
        """Give an image a name, which it may have already."""
        naming = self._docker.images.tag(image_id, repository, tag=tag)
        await self._call(f"name image {image_id}", naming)

    async def list_images(self, label: str) -> list[ImageEntry]:
        """Every image that has the label."""
        listing = self._docker.images.list(filters={"label": [label]})
        entries = []
        for image in await self._call("list images", listing):
            found = await self.find_image(image["Id"])
            if found is not None:
                names = found.get("RepoTags") or [found["Id"]]
                tagged = (found.get("Metadata") or {}).get("LastTagTime") or ""
                used = max(tagged, found.get("Created") or "")
                entries.append(ImageEntry(found["Id"], names[0], int(found["Size"]), used))
        return entries

    async def remove_image(self, image_id: str) -> None:
        """Remove an image by all its names. None at all is no error."""
        try:
            removing = self._docker.images.delete(image_id, force=True)
            await self._call(f"remove image {image_id}", removing)
        except EngineError as error:
            if error.status != _NOT_FOUND:
                raise

    # --- containers --------------------------------------------------------------------------------

    async def create(self, name: str, options: Mapping[str, Any]) -> None:
        """Make a container, which does not run yet."""
        creating = self._docker.containers.create(dict(options), name=name)
        await self._call(f"create container {name}", creating)

    async def start(self, name: str) -> None:
        """Have a container run. One that runs already is no error."""
        container = self._docker.containers.container(name)
        await self._call(f"start container {name}", container.start())

    async def describe(self, name: str) -> dict[str, Any] | None:
        """The state of a container; None when there is none."""
        container = self._docker.containers.container(name)
        try:
            return await self._call(f"describe container {name}", container.show())
        except EngineError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def remove(
        self, name: str, timeout_s: float = REMOVAL_S, *, after: asyncio.Future[None] | None = None
    ) -> None:
        """Kill a container and remove it with its volumes; return when it is gone. None at all is no error.

        `after` is a call that may yet make it; it is waited for, and never cancelled here. An engine that stands still
        is given up within two seconds, whatever `timeout_s`.
        """
        removing = asyncio.ensure_future(self._remove_after(name, timeout_s, after))
        try:
            while not (await asyncio.wait({removing}, timeout=_LOOK_S))[0]:
                await self._call(
                    f"answer while container {name} was to be removed",
                    self._docker.version(),
                    _STANDSTILL_S,
                )
        finally:
            removing.cancel()
            await asyncio.wait({removing})
        removing.result()

    async def _remove_after(
        self, name: str, timeout_s: float, after: asyncio.Future[None] | None
    ) -> None:
        if after is not None:
            await asyncio.wait({after})
        await self._call(f"remove container {name}", self._remove(name), timeout_s)

    async def _remove(self, name: str) -> None:
        while True:
            try:
                await self._docker.containers.container(name).delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status == _NOT_FOUND:
                    return
                if error.status != _CONFLICT:
                    raise
            # After a conflict somebody else is at it: the engine itself, or another sweep.
            await asyncio.sleep(_REMOVAL_POLL_S)

    async def list_containers(self, label: str) -> list[ContainerEntry]:
        """Every container that has the label, also those that do not run."""
        listing = self._docker.containers.list(all=True, filters=json.dumps({"label": [label]}))
        return [
            ContainerEntry(
                name=container["Names"][0].lstrip("/") if container["Names"] else container.id,
                state=container["State"],
                created=float(container["Created"]),
                labels=dict(container["Labels"] or {}),
            )
            for container in await self._call("list containers", listing)
        ]

    async def attach(self, name: str, stream: AttachedStream) -> None:
        """Connect `stream` to the main process of a container. Before its start, to miss nothing."""
        await self._call(f"attach to container {name}", self._attach(name, stream))

    async def _attach(self, name: str, stream: AttachedStream) -> None:
        response = await self._docker.session.post(
            self._url(f"containers/{name}/attach"),
            params={"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"},
            headers=_UPGRADE,
        )
        await _take_over(response, stream)

    async def attach_process(
        self, name: str, command: Sequence[str], user: str, stream: AttachedStream
    ) -> None:
        """Start one more process in a running container and connect `stream` to it."""
        what = f"start a process in container {name}"
        await self._call(what, self._attach_process(name, command, user, stream))

    async def _attach_process(
        self, name: str, command: Sequence[str], user: str, stream: AttachedStream
    ) -> None:
        process = {
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": False,
            "Cmd": list(command),
            "User": user,
        }
        url = self._url(f"containers/{name}/exec")
        async with self._docker.session.post(url, json=process) as answer:
            await _check(answer)
            process_id = (await answer.json())["Id"]
        response = await self._docker.session.post(
            self._url(f"exec/{process_id}/start"),
            json={"Detach": False, "Tty": False},
            headers=_UPGRADE,
        )
        await _take_over(response, stream)

    async def how_it_ended(self, name: str) -> str:
        """What the engine saw of a container's end, which may have been removed since. Within seconds."""
        try:
            return await self._call("tell of an end", self._end_in_events(name), _ENDING_S)
        except EngineError as error:
            return f"container {name} may be gone, and why cannot be told: {error}"

    async def _end_in_events(self, name: str) -> str:
        # Our containers remove themselves, so there is nothing to look at; but the engine remembers events.
        filters = {"type": ["container"], "container": [name], "event": ["die", "oom"]}
        query = {"since": "1", "filters": json.dumps(filters)}
        out_of_memory = ""
        async with self._docker.session.get(self._url("events"), params=query) as response:
            response.raise_for_status()
            async for line in response.content:
                event = json.loads(line)
                if event["Action"] == "oom":
                    out_of_memory = " after it had run out of memory"
                elif event["Action"] == "die":
                    code = event["Actor"]["Attributes"].get("exitCode", "?")
                    meaning = _EXIT_CODES.get(code, "")
                    return f"container {name} ended{out_of_memory} with exit code {code}{meaning}"
        return f"container {name} has ended"

    # --- every call --------------------------------------------------------------------------------

    def _url(self, path: str) -> str:
        version = self._docker.api_version  # "auto" before the first call that asks for it
        prefix = "" if version == "auto" else f"{version}/"
        return f"{self._docker.docker_host}/{prefix}{path}"

    async def _call(self, what: str, call: Awaitable[T], timeout_s: float | None = None) -> T:
        limit_s = self._call_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await call
        except TimeoutError as error:
            message = f"{self.name} did not {what} within {limit_s:g} s"
            raise EngineError(message, transient=True) from error
        except aiodocker.DockerError as error:
            unreachable = error.status == _UNREACHABLE
            raise EngineError(
                f"{self.name} did not {what}: {error.message}{_NO_ENGINE if unreachable else ''}",
                status=0 if unreachable else error.status,
                transient=error.status >= _SERVER_ERROR,
            ) from error
        except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
            message = f"{self.name} did not {what}: its answer broke off ({error!r})"
            raise EngineError(message, transient=True) from error


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status >= _BAD_REQUEST:
        raise aiodocker.DockerError(answer.status, (await answer.text())[:500])


async def _take_over(response: aiohttp.ClientResponse, stream: AttachedStream) -> None:
    try:
        if response.status != _UPGRADED:
            raise aiodocker.DockerError(response.status, (await response.text())[:500])
        stream.take_over(response)
    except BaseException:
        response.close()
        raise
