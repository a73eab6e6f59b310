"""The engine's calls about networks, and about files of containers that do not run yet."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import aiodocker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

T = TypeVar("T")

REMOVAL_S = 6.0
_POLL_S = 0.05
_FORBIDDEN, _NOT_FOUND, _CONFLICT = 403, 404, 409


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """A network as the engine lists it."""

    name: str
    labels: dict[str, str]


class NetworkCalls:
    """A part of `Engine`."""

    _docker: aiodocker.Docker

    @abstractmethod
    async def _call(self, what: str, call: Awaitable[T], timeout_s: float | None = None) -> T: ...

    async def create_network(self, options: Mapping[str, Any]) -> None:
        """Make a network."""
        creating = self._docker.networks.create(dict(options))
        await self._call(f"create network {options['Name']}", creating)

    async def list_networks(self, label: str) -> list[NetworkEntry]:
        """Every network that has the label."""
        listing = self._docker.networks.list(filters={"label": [label]})
        return [
            NetworkEntry(network["Name"], dict(network["Labels"] or {}))
            for network in await self._call("list networks", listing)
        ]

    async def remove_network(
        self, name: str, timeout_s: float = REMOVAL_S, *, after: asyncio.Future[None] | None = None
    ) -> None:
        """Remove a network that no container is in, or is about to leave. None at all is no error.

        `after` is a call that may yet make it; it is waited for, and never cancelled here.
        """
        await self._call(f"remove network {name}", self._remove_network(name, after), timeout_s)

    async def _remove_network(self, name: str, after: asyncio.Future[None] | None) -> None:
        if after is not None:
            await asyncio.wait({after})
        while True:
            try:
                await (await self._docker.networks.get(name)).delete()
            except aiodocker.DockerError as error:
                if error.status == _NOT_FOUND:
                    return
                if error.status not in (_FORBIDDEN, _CONFLICT):  # containers are leaving it
                    raise
            else:
                return
            await asyncio.sleep(_POLL_S)

    async def put_files(self, name: str, archive: bytes) -> None:
        """Unpack a tar archive at the root of a container."""
        container = self._docker.containers.container(name)
        putting = container.put_archive("/", archive)  # type: ignore[no-untyped-call]
        await self._call(f"put files into container {name}", putting)
