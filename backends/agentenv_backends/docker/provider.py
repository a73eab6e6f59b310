"""`DockerProvider`: starts hosts in containers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentenv_backends._aio import finish
from agentenv_backends._owner import Owner
from agentenv_backends._uids import RANGE_SIZE, UidRange, claim_uid_range
from agentenv_backends.allow_list import AllowList
from agentenv_backends.docker import bringing, examination, owners, workspaces
from agentenv_backends.docker.boot import IMAGES_PYTHON
from agentenv_backends.docker.bringing import BROUGHT, bring_python
from agentenv_backends.docker.container import Container
from agentenv_backends.docker.containers import create_options, host_settings
from agentenv_backends.docker.engine import Engine
from agentenv_backends.docker.images import provide_image
from agentenv_backends.docker.service_options import joined
from agentenv_backends.docker.services import ServiceImages, Services
from agentenv_backends.docker.workspaces import WorkspaceImages
from agentenv_backends.errors import (
    BackendStoppedError,
    BackendUnavailableError,
    EngineError,
    HostStartError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_backends.base import Capabilities
    from agentenv_backends.config import DockerConfig
    from agentenv_backends.connection import HostConnection
    from agentenv_backends.host import Leftover, SnapshotCache

_log = logging.getLogger(__name__)

_STARTS_AT_ONCE = 4
"""An engine that is asked to start dozens of containers at the same moment hangs."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_EXPIRY_MARGIN_S = 600.0
_MAPPED_UIDS = 20_000
"""First slot user where the engine maps users: its containers have none above 65,535."""


@dataclass(frozen=True, slots=True)
class _Ground:
    """What `prepare` has found out."""

    image_id: str
    maps_users: bool
    clock_offset_s: float
    python: tuple[str, ...] = IMAGES_PYTHON
    """What starts an interpreter in a container."""
    services: ServiceImages | None = None
    """Of the services that hosts have. None in the trial, which is of the main container alone."""


class _NoPythonError(HostStartError):
    """The image has no Python that the sandbox server could run by."""


class DockerProvider:
    """Starts hosts in containers. Implements `HostProvider`."""

    def __init__(self, config: DockerConfig) -> None:
        self.container_names: dict[str, str] = {}
        """The container of each host that was started, also of those that have ended since."""
        self._config = config
        self._run = secrets.token_hex(4)
        self._starting = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._ground: _Ground | None = None
        self.snapshot_cache: SnapshotCache | None = None
        """See `SnapshotCache`; there once `prepare` has found the image."""

    async def prepare(self) -> Capabilities:
        """See `HostProvider.prepare`. Gets the image, and tries all that was asked for in a container."""
        config = self._config
        if not sys.platform.startswith("linux"):
            raise BackendUnavailableError(f"the docker backend needs Linux, this is {sys.platform}")
        try:
            async with Engine(config.docker_host) as engine:
                info = await engine.info()
                examination.check_engine(engine.name, await engine.version(), info)
                image = await provide_image(engine, config)
                examination.check_image(config, image)
                config = self._config = examination.as_the_image_says(config, image)
                self._ground = _Ground(
                    image["Id"], examination.maps_users(info), await engine.clock_offset_s()
                )
                if not examination.may_have_quotas(info):
                    self._give_up_quotas(str(info.get("Driver")))
                services = await self._images_of_services(engine)
                host = await self._try_out(engine, image)
                config = self._config
                ground = self._ground
                images = ServiceImages(services, ground.image_id, ground.python)
                self._ground = replace(ground, services=images if services else None)
        except (EngineError, HostStartError) as error:
            raise BackendUnavailableError(f"the docker backend cannot work: {error}") from error
        await host.close()
        assert host.facts is not None
        for sentence in examination.missing_protections(info):
            _log.warning("%s", sentence)
        for sentence in examination.gives_up(config, host.facts):
            _log.info("containers of this configuration: %s", sentence)
        if config.workspace_images:
            self.snapshot_cache = WorkspaceImages(config, image["Id"])
        return examination.capabilities(config, info, host.facts)

    async def _images_of_services(self, engine: Engine) -> dict[str, str]:
        """By the services' names. Raises `BackendUnavailableError` or `EngineError`."""
        images = {}
        for service in self._config.services:
            own = {
                "image": service.image or "",
                "dockerfile": service.dockerfile,
                "build_context": service.build_context,
                "build_args": service.build_args,
            }
            try:
                image = await provide_image(engine, self._config.model_copy(update=own))
            except BackendUnavailableError as error:
                raise BackendUnavailableError(f"service {service.name}: {error}") from error
            images[service.name] = str(image["Id"])
        return images

    async def _try_out(self, engine: Engine, image: Mapping[str, Any]) -> HostConnection:
        """The first host, with a size where its engine can give it one."""
        try:
            return await self._try_pythons(engine, image)
        except HostStartError as error:
            if self._config.root_disk_mb is None or not examination.lacks_quotas(str(error)):
                raise
            self._give_up_quotas(str(error))
        return await self._try_pythons(engine, image)

    def _give_up_quotas(self, reason: str) -> None:
        if self._config.root_disk_mb is None:
            return
        _log.info("root_disk_mb is not in force, the engine's storage has no quotas: %s", reason)
        self._config = self._config.model_copy(update={"root_disk_mb": None})

    async def _try_pythons(self, engine: Engine, image: Mapping[str, Any]) -> HostConnection:
        """A host by the image's Python or by ours."""
        if self._config.python != "bring":
            try:
                return await self.launch("trial")
            except _NoPythonError:
                if self._config.python == "image":
                    raise
        _log.info("%s", examination.told_of_bringing(self._config))
        assert self._ground is not None
        image_id = await bring_python(engine, self._config, image)
        self._ground = replace(self._ground, image_id=image_id, python=BROUGHT)
        return await self.launch("trial")

    async def launch(self, host_id: str) -> HostConnection:
        """See `HostProvider.launch`. What may do better in a moment is tried again while there is time."""
        if self._ground is None:
            raise BackendStoppedError("no container can be started before `prepare`")
        now = asyncio.get_running_loop().time
        # Earlier than the pool's own, so that the engine's reason is told.
        deadline = now() + 0.8 * self._config.launch_timeout_s
        pause_s = _FIRST_PAUSE_S
        async with self._starting:
            while True:
                try:
                    return await self._launch_once(host_id, self._ground, deadline - now())
                except EngineError as error:
                    lost = not error.transient or examination.lacks_quotas(str(error))
                    if lost or now() + pause_s > deadline:
                        raise HostStartError(f"host {host_id} did not start: {error}") from error
                    _log.warning("host %s: again in %g s, as %s", host_id, pause_s, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _launch_once(self, host_id: str, ground: _Ground, timeout_s: float) -> HostConnection:
        config, run_id = self._config, f"{self._run}-{host_id}"
        engine = Engine(config.docker_host)
        uids = None if ground.maps_users else _claim_uids(host_id)
        uid_base = _MAPPED_UIDS if uids is None else uids.base
        # Known before the container is, so that whatever happens it can be found.
        name = f"agentenv-{run_id}-{secrets.token_hex(3)}"
        self.container_names[host_id] = name
        expires = time.time() + ground.clock_offset_s + config.max_lifetime_s + _EXPIRY_MARGIN_S
        labels = owners.labels(self._run, Owner.me(), expires)
        allowed = AllowList(config.network_allow_list) if config.network_allow_list else None
        options = create_options(config, ground.image_id, labels, ground.python)
        services = None
        if ground.services is not None:
            services = Services(engine, config, ground.services, name, labels)
            options = joined(options, config, services.network)
        container = Container(engine, name, uids, allowed, ground.python, services)
        try:
            return await container.bring_up(
                host_id,
                options,
                host_settings(config, run_id, uid_base, RANGE_SIZE, ground.python),
                max(timeout_s, 1.0),
            )
        except BaseException as error:
            await finish(asyncio.create_task(container.undo()))
            reason = str(error)
            if ground.python == IMAGES_PYTHON and examination.lacks_python(reason):
                raise _NoPythonError(examination.way_out_without_python(config, reason)) from error
            if examination.lacks_shell(reason):
                raise HostStartError(examination.way_out_without_shell(config)) from error
            raise

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """See `HostProvider.sweep`. Raises `EngineError` when the engine does not answer."""
        async with Engine(self._config.docker_host) as engine:
            return await owners.sweep(engine, remove=remove)

    async def clear_cache(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """Find the workspaces, and the images with a Python added, that the engine keeps for later runs; remove them if
        asked to. Raises `EngineError`.
        """
        found: tuple[Leftover, ...] = ()
        for label in (workspaces.KEY_LABEL, bringing.LABEL):
            found += await workspaces.clear(self._config.docker_host, label, remove=remove)
        return found


def _claim_uids(host_id: str) -> UidRange:
    uids = claim_uid_range()
    if uids is None:
        raise HostStartError(
            f"host {host_id}: every range of user ids for slots is taken by other hosts of this machine; end some"
        )
    return uids
