"""Whose a container or a network is, as its labels tell, what is a leftover, and the sweep that removes those.

An owner is a driver. What belongs to one that is not certainly dead is left alone until it has expired.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from agentenv_backends._owner import Owner
from agentenv_backends.errors import EngineError
from agentenv_backends.host import Leftover

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentenv_backends.docker._network_calls import NetworkEntry
    from agentenv_backends.docker.engine import ContainerEntry, Engine

_log = logging.getLogger(__name__)

RUN_LABEL = "agentenv.run"
OWNER_LABEL = "agentenv.owner"
EXPIRES_LABEL = "agentenv.expires"
STALE_S = 600.0
"""A container that does not run is somebody's launch or removal for at most so long, and then a leftover."""
_IDLE_STATES = frozenset({"created", "exited", "dead"})


def labels(run: str, owner: Owner, expires: float) -> dict[str, str]:
    """What a container is marked with. `expires` is in seconds since the epoch, by the engine's clock."""
    return {RUN_LABEL: run, OWNER_LABEL: owner.label(), EXPIRES_LABEL: f"{expires:.0f}"}


def is_leftover(container: ContainerEntry, now: float) -> bool:
    """Whether nobody needs this container of ours any more. `now` is by the engine's clock.

    A label that makes no sense says nothing: then only a container that does not run is a leftover.
    """
    if container.state in _IDLE_STATES and now - container.created > STALE_S:
        return True
    return is_abandoned(container, now)


def is_abandoned(thing: ContainerEntry | NetworkEntry, now: float) -> bool:
    """Whether its owner is certainly dead, or it has expired."""
    owner = Owner.read(thing.labels.get(OWNER_LABEL, ""))
    if owner is not None and owner.is_dead():
        return True
    expires = thing.labels.get(EXPIRES_LABEL, "")
    return expires.isdecimal() and now > float(expires)


def owner_name(container: ContainerEntry | NetworkEntry) -> str:
    """Who made it, for people."""
    owner = Owner.read(container.labels.get(OWNER_LABEL, ""))
    run = container.labels.get(RUN_LABEL, "?")
    return f"run {run}, {owner}" if owner is not None else f"run {run}"


async def sweep(engine: Engine, *, remove: bool) -> tuple[Leftover, ...]:
    """Find containers and networks of dead runs, and remove them if asked to. Raises `EngineError`."""
    now = time.time() + await engine.clock_offset_s()
    containers = [
        each for each in await engine.list_containers(OWNER_LABEL) if is_leftover(each, now)
    ]
    networks = [each for each in await engine.list_networks(OWNER_LABEL) if is_abandoned(each, now)]
    swept = [await _swept("container", each, engine.remove, remove=remove) for each in containers]
    return tuple(
        swept
        + [await _swept("network", each, engine.remove_network, remove=remove) for each in networks]
    )


async def _swept(
    kind: str,
    thing: ContainerEntry | NetworkEntry,
    removal: Callable[[str], Awaitable[None]],
    *,
    remove: bool,
) -> Leftover:
    removed = False
    if remove:
        try:
            await removal(thing.name)
            removed = True
        except EngineError as error:
            _log.warning("a %s of a dead run stays: %s", kind, error)
    return Leftover(kind, thing.name, owner_name(thing), removed)
