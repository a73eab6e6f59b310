"""The services of one host, their network and their keeper, from before they exist until they are gone."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from agentenv_backends.config.services import order_of
from agentenv_backends.docker import service_options
from agentenv_backends.docker.stream import AttachedStream
from agentenv_backends.errors import HostStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentenv_backends.config import DockerConfig
    from agentenv_backends.config.services import ServiceConfig
    from agentenv_backends.docker.engine import Engine

_log = logging.getLogger(__name__)

_POLL_S = 0.25
_KEPT_OUTPUT = 2000
_UNHEALTHY, _HEALTHY = "unhealthy", "healthy"


@dataclass(frozen=True, slots=True)
class ServiceImages:
    """What services run from, once it is there: images by services' names, and what the keeper runs by."""

    by_name: Mapping[str, str]
    keeper_image: str
    keeper_python: Sequence[str]


class _Output(asyncio.Protocol):
    """Reads what a container says, keeps the end of it, and hears of its end."""

    def __init__(self, on_end: Callable[[str], None]) -> None:
        self.kept = b""
        self._on_end = on_end

    def text(self) -> str:
        """The end of its standard output."""
        return self.kept.decode("utf-8", "replace").strip()

    def data_received(self, data: bytes) -> None:
        self.kept = (self.kept + data)[-_KEPT_OUTPUT:]

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:  # else we have ended it
            self._on_end(str(exc))


@dataclass(slots=True)
class _Running:
    """A container of ours and the stream of what it says."""

    name: str
    output: _Output
    stream: AttachedStream
    creating: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    why_ended: str = ""

    def said(self) -> str:
        """The end of what it wrote, for an error's message."""
        return " ".join(filter(None, (self.output.text(), self.stream.complaints))) or "nothing"


class Services:
    """The services of one host. `network` is there for its main container once `bring_up` has returned.

    They end with `remove`; with their driver, however it ends, and when their lease or lifetime runs out, as the keeper
    ends then and every process of theirs with it. The network stays then for a sweep to remove.
    """

    def __init__(
        self,
        engine: Engine,
        config: DockerConfig,
        images: ServiceImages,
        host: str,
        labels: Mapping[str, str],
    ) -> None:
        """`host` is the name of the main container, which all names begin with."""
        self.network = host
        self._engine = engine
        self._config = config
        self._images = images
        self._labels = labels
        self._running: dict[str, _Running] = {}
        self._making_network: asyncio.Task[None] | None = None
        self._lease: asyncio.TimerHandle | None = None
        self._on_lost: Callable[[str], None] = lambda _: None
        self._waiting_for: dict[str, str] = {}
        """Services that are not ready yet, and what their last check said."""

    async def bring_up(self, on_lost: Callable[[str], None], timeout_s: float) -> None:
        """Start all of them in their order; return when each is healthy, or runs where it has no check.

        `on_lost(reason)` is called for each that ends afterwards. Raises `EngineError` or `HostStartError`. Whether or
        not that works, `remove` has to be called in the end.
        """
        self._on_lost = on_lost
        try:
            async with asyncio.timeout(timeout_s):
                await self._make_network()
                keeper = await self._start_keeper()
                for group in order_of(self._config.services):
                    await self._start_group(group, keeper)
        except TimeoutError as error:
            slow = "; ".join(
                f"service {name} ({check or 'no check of it has ended'}; its last output: {self._running[name].said()})"
                for name, check in self._waiting_for.items()
            )
            raise HostStartError(
                f"services were not ready within {timeout_s:.0f} s: {slow or 'the engine did not start them'}"
            ) from error

    async def remove(self) -> None:
        """End all of them; return when they are gone, while their network stays. Raises `EngineError`."""
        self._on_lost = lambda _: None
        if self._lease is not None:
            self._lease.cancel()
        for running in self._running.values():
            running.stream.abort()
        results = await asyncio.gather(
            *(
                self._engine.remove(each.name, after=each.creating)
                for each in self._running.values()
            ),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def remove_network(self) -> None:
        """Remove the network, once nothing is in it any more. Raises `EngineError`."""
        await self._engine.remove_network(self.network, after=self._making_network)

    # --- starting ----------------------------------------------------------------------------------

    async def _make_network(self) -> None:
        options = service_options.network_options(self._config, self.network, self._labels)
        self._making_network = asyncio.create_task(self._engine.create_network(options))
        # Not cancelled with us: only its answer tells whether there is something to remove.
        await asyncio.shield(self._making_network)

    async def _start_keeper(self) -> str:
        images = self._images
        options = service_options.keeper_options(
            self._config, images.keeper_image, self._labels, images.keeper_python
        )
        keeper = self._new("", f"{self.network}.keeper", "the keeper of the services")
        await self._start(keeper, options)
        self._renew_lease(keeper.stream, self._config.lease_s / 3)
        return keeper.name

    def _renew_lease(self, stream: AttachedStream, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._lease = loop.call_later(interval_s, self._renew_lease, stream, interval_s)
        stream.write(b".")

    async def _start_group(self, names: Sequence[str], keeper: str) -> None:
        by_name = {service.name: service for service in self._config.services}
        tasks = [asyncio.create_task(self._start_service(by_name[name], keeper)) for name in names]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _start_service(self, service: ServiceConfig, keeper: str) -> None:
        self._waiting_for[service.name] = ""
        image_id = self._images.by_name[service.name]
        options = service_options.service_options(self._config, service, image_id, self._labels)
        options = service_options.joined(options, self._config, self.network, service.name)
        options = service_options.kept_by(options, keeper)
        running = self._new(
            service.name, f"{self.network}-{service.name}", f"service {service.name}"
        )
        archive = b""
        if service.files:
            archive = await asyncio.to_thread(service_options.packed, service.files)
        await self._start(running, options, archive)
        await self._ready(service.name, running)
        del self._waiting_for[service.name]

    def _new(self, key: str, container: str, what: str) -> _Running:
        output = _Output(partial(self._ended, key, what))
        stream = AttachedStream(output, partial(self._engine.how_it_ended, container))
        running = self._running[key] = _Running(container, output, stream)
        return running

    async def _start(
        self, running: _Running, options: Mapping[str, Any], files: bytes = b""
    ) -> None:
        running.creating = asyncio.create_task(self._engine.create(running.name, options))
        await asyncio.shield(running.creating)
        if files:
            await self._engine.put_files(running.name, files)
        await self._engine.attach(running.name, running.stream)
        await self._engine.start(running.name)

    async def _ready(self, name: str, running: _Running) -> None:
        while not running.ended.is_set():
            state = ((await self._engine.describe(running.name)) or {}).get("State") or {}
            health = state.get("Health") or {}
            checks = health.get("Log") or [{}]
            self._waiting_for[name] = str(checks[-1].get("Output") or "").strip()[-500:]
            status = health.get("Status", "none")
            # One that does not run any more is called unhealthy too: then why it ended is about to be known.
            if state.get("Running") and status in (_HEALTHY, "none"):
                return
            if state.get("Running") and status == _UNHEALTHY:
                raise HostStartError(
                    f"service {name} is not healthy: its last check said {self._waiting_for[name] or 'nothing'!r}; its "
                    f"last output: {running.said()}"
                )
            await _within(running.ended.wait(), _POLL_S)
        raise HostStartError(running.why_ended)

    def _ended(self, key: str, what: str, reason: str) -> None:
        running = self._running[key]
        said = running.output.text() or "nothing"  # and what it complained of is in the reason
        running.why_ended = f"{what} has ended: {reason}; its last output: {said}"
        running.ended.set()
        self._on_lost(running.why_ended)


async def _within(waiting: Any, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return
