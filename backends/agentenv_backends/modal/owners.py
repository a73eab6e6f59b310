"""Whose a sandbox is, as its tags tell, what is a leftover, and the sweep that removes those.

Only from inside the same boot and pid namespace can one say that a driver is dead; so only sandboxes of drivers of this
machine are looked at. Others end by themselves: their server when its lease runs out, they when nothing runs in them,
or at the end of their lifetime.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from agentenv_backends._owner import Owner
from agentenv_backends.host import Leftover
from agentenv_backends.modal.service import ModalError, Service

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)

RUN_TAG = "agentenv-run"
BOOT_TAG = "agentenv-boot"
OWNER_TAG = "agentenv-owner"
EXPIRES_TAG = "agentenv-expires"
_LOOKS_AT_ONCE = 16
_APPS_AT_ONCE = 8
_TERMINATE_S = 10.0


def tags(run: str, owner: Owner, lifetime_s: float) -> dict[str, str]:
    """What a sandbox is marked with: letters, digits, `-` and `.`, at most 63 of them each."""
    return {
        RUN_TAG: run,
        BOOT_TAG: owner.boot,
        OWNER_TAG: f"{owner.pid_namespace}.{owner.pid}.{owner.start_time}",
        EXPIRES_TAG: f"{time.time() + lifetime_s:.0f}",
    }


def owner_of(marked: Mapping[str, str]) -> Owner | None:
    """The owner that tags name; None when they name none."""
    label = f"{marked.get(BOOT_TAG, '')}:{marked.get(OWNER_TAG, '').replace('.', ':')}"
    return Owner.read(label)


class EveryApp:
    """Every app of an environment (None: the configured one), whatever its name, to be swept."""

    def __init__(self, environment_name: str | None = None) -> None:
        self._service = Service()
        self._environment_name = environment_name

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """Find sandboxes of dead drivers of this machine, and remove them if asked to. Raises `ModalError`."""
        await self._service.open()
        at_once = asyncio.Semaphore(_APPS_AT_ONCE)

        async def look(app_id: str) -> tuple[Leftover, ...]:
            async with at_once:
                return await _swept(self._service, app_id, remove=remove)

        apps = await self._service.apps(self._environment_name)
        return sum(await asyncio.gather(*map(look, apps)), ())

    async def close(self) -> None:
        """Let go of the service."""
        await self._service.close()


async def _swept(service: Service, app_id: str, *, remove: bool) -> tuple[Leftover, ...]:
    try:
        return await sweep(service, app_id, remove=remove)
    except ModalError as error:
        if error.is_missing:  # stopped since, and its sandboxes with it
            return ()
        raise


async def sweep(service: Service, app_id: str, *, remove: bool) -> tuple[Leftover, ...]:
    """Find sandboxes of dead drivers of this machine, and remove them if asked to. Raises `ModalError`."""
    at_once = asyncio.Semaphore(_LOOKS_AT_ONCE)

    async def look(sandbox: Any) -> Leftover | None:
        async with at_once:
            return await _judge(service, sandbox, remove=remove)

    found = await service.list(app_id, {BOOT_TAG: Owner.me().boot})
    return tuple(filter(None, await asyncio.gather(*map(look, found))))


async def _judge(service: Service, sandbox: Any, *, remove: bool) -> Leftover | None:
    try:
        marked = await service.tags(sandbox)
    except ModalError as error:
        if error.is_missing:  # ended since
            return None
        raise
    owner = owner_of(marked)
    if owner is None or not owner.is_dead():
        return None
    run = marked.get(RUN_TAG, "?")
    removed = remove and await _removed(service, sandbox)
    return Leftover("sandbox", sandbox.object_id, f"run {run}, {owner}", removed)


async def _removed(service: Service, sandbox: Any) -> bool:
    try:
        await service.terminate(sandbox, _TERMINATE_S)
    except ModalError as error:
        _log.warning("a sandbox of a dead run stays: %s", error)
        return False
    finally:
        await service.let_go(sandbox)
    return True
