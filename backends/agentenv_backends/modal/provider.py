"""`ModalProvider`: starts hosts in sandboxes of Modal."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from agentenv_backends._aio import finish
from agentenv_backends._owner import Owner
from agentenv_backends.base import Capabilities
from agentenv_backends.errors import (
    BackendStoppedError,
    BackendUnavailableError,
    CapabilityError,
    HostStartError,
)
from agentenv_backends.modal import owners
from agentenv_backends.modal.creation import create_options, host_settings
from agentenv_backends.modal.sandbox import Sandbox
from agentenv_backends.modal.service import ModalError, Service, tried

if TYPE_CHECKING:
    from agentenv_backends.config import ModalConfig
    from agentenv_backends.connection import HostConnection
    from agentenv_backends.host import Leftover
    from agentenv_backends.sandboxd.settings import HostFacts, HostSettings

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 2.0
_LONGEST_BUSY_PAUSE_S = 15.0
_SHARE_OF_LAUNCH = 0.8
"""Earlier than the pool gives a launch up, so that the service's reason is told."""
_NO_PYTHON = ("No such file", "not found", "code 127")
_WAY_OUT_WITHOUT_PYTHON = (
    "the sandbox server needs python3 (3.8 or newer) in the image: take another one, or build one with "
    "`modal.Image.from_registry(..., add_python=...)` and give its id as `image`"
)


@dataclass(frozen=True, slots=True)
class _Ground:
    """What `prepare` has found."""

    app: Any
    image: Any
    secrets: tuple[Any, ...]


class ModalProvider:
    """Starts hosts in sandboxes of Modal. Implements `HostProvider`."""

    def __init__(self, config: ModalConfig, profile: str = "default") -> None:
        self.sandbox_names: dict[str, str] = {}
        """The sandbox of each host that was started, also of those that have ended since."""
        self._config = config
        self._profile = profile
        self._run = secrets.token_hex(4)
        self._service = Service()
        self._ground: _Ground | None = None
        self._numbers = itertools.count(secrets.randbelow(1000))

    async def prepare(self) -> Capabilities:
        """See `HostProvider.prepare`. Gets the image, and tries all that was asked for in a sandbox."""
        config, service = self._config, self._service
        try:
            await service.open()
            where = config.environment_name
            app = await tried(lambda: service.find_app(config.app_name, where))
            named = [
                await tried(partial(service.find_secret, name, where)) for name in config.secrets
            ]
            image = await tried(lambda: self._provide_image(app))
            self._ground = _Ground(app, image, tuple(named))
            host = await self.launch("trial")
        except (ModalError, HostStartError) as error:
            raise BackendUnavailableError(f"the modal backend cannot work: {error}") from error
        await host.close()
        assert host.facts is not None
        for sentence in host.facts.gives_up:
            _log.info("sandboxes of profile %s: %s", self._profile, sentence)
        return _capabilities(config, host.facts)

    async def _provide_image(self, app: Any) -> Any:
        config, service = self._config, self._service
        if config.dockerfile is None:
            return await service.provide_image(config.image, app, config.build_timeout_s)
        return await service.build_image(
            config.dockerfile, config.build_context, app, config.build_timeout_s
        )

    async def launch(self, host_id: str) -> HostConnection:
        """See `HostProvider.launch`. What may do better in a moment is tried again while there is time."""
        if self._ground is None:
            raise BackendStoppedError("no sandbox can be started before `prepare`")
        now = asyncio.get_running_loop().time
        deadline = now() + _SHARE_OF_LAUNCH * self._config.launch_timeout_s
        for attempt in itertools.count():
            try:
                return await self._launch_once(host_id, self._ground, deadline - now())
            except ModalError as error:
                pause_s = _pause_s(attempt, busy=error.is_busy)
                if not error.transient or now() + pause_s > deadline:
                    raise HostStartError(f"host {host_id} did not start: {error}") from error
                _log.warning("host %s: again in %.1f s, as %s", host_id, pause_s, error)
            await asyncio.sleep(pause_s)
        raise AssertionError

    async def _launch_once(self, host_id: str, ground: _Ground, timeout_s: float) -> HostConnection:
        config, number = self._config, next(self._numbers)
        run_id = f"{self._run}-{host_id}"
        name = f"{self._profile}-{run_id}-{number}"
        self.sandbox_names[host_id] = name
        sandbox = Sandbox(self._service, config.app_name, config.environment_name, name)
        options = create_options(
            config,
            name=name,
            app=ground.app,
            image=ground.image,
            secrets=ground.secrets,
            tags=owners.tags(self._run, Owner.me(), config.max_lifetime_s),
        )

        def settings(life_s: float) -> HostSettings:
            return host_settings(config, run_id, number, life_s, sandbox.working_dir)

        try:
            return await sandbox.bring_up(host_id, options, settings, max(timeout_s, 1.0))
        except BaseException as error:
            await finish(asyncio.create_task(sandbox.undo()))
            if _lacks_python(str(error)):
                raise HostStartError(
                    f"host {host_id}, image {config.dockerfile or config.image}: {_WAY_OUT_WITHOUT_PYTHON} ({error})"
                ) from error
            raise

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """See `HostProvider.sweep`. Raises `ModalError` when the service does not answer."""
        was_open = self._service.is_open
        await self._service.open()
        try:
            config = self._config
            app = await self._service.find_app(config.app_name, config.environment_name, make=False)
            return await owners.sweep(self._service, app.app_id, remove=remove)
        except ModalError as error:
            if error.is_missing:  # there is no such app, and so nothing in it
                return ()
            raise
        finally:
            if not was_open:
                await self._service.close()

    async def close(self) -> None:
        """Let go of the service, when no host is left."""
        await self._service.close()


def _pause_s(attempt: int, *, busy: bool) -> float:
    """Longer after each try; of many that are told to wait each comes back at another time."""
    longest = _LONGEST_BUSY_PAUSE_S if busy else _LONGEST_PAUSE_S
    first = 4 * _FIRST_PAUSE_S if busy else _FIRST_PAUSE_S
    return min(longest, first * 2.0**attempt) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret


def _lacks_python(reason: str) -> bool:
    return "python3" in reason and any(sign in reason for sign in _NO_PYTHON)


def _capabilities(config: ModalConfig, facts: HostFacts) -> Capabilities:
    """What this backend promises. Raises `CapabilityError` when that is less than `require_limits` asks for."""
    offered = Capabilities(
        isolation="container" if config.slots == 1 else "user",
        network_control=True,
        memory_limit=False,
        process_limit=bool(facts.process_limit),
        disk_limit=False,
        stateful_terminals=bool(facts.bash),
        tmux=bool(facts.tmux),
        snapshot=True,
        network_allow_list=True,
    )
    if lacking := offered.lacking(config.require_limits):
        raise CapabilityError(
            f"require_limits: {', '.join(lacking)} cannot be limited for each slot of a Modal sandbox; take it out, "
            "or use another backend"
        )
    return offered
