"""Removing what dead runs left behind, on every backend there is.

    for swept in await clean_up():
        print(swept.backend, swept.leftovers, swept.skipped)

Nothing of a live run is touched: whose a thing is stands in its name or its labels, and only what certainly belongs to
nobody any more, or has expired, counts as left behind.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agentenv_backends.errors import BackendConfigError, BackendError, BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv_backends.host import Leftover

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Swept:
    """What was found on one backend."""

    backend: str
    leftovers: tuple[Leftover, ...] = ()
    skipped: str = ""
    """Why nothing could be looked for there; empty: it was."""


class Sweeper(Protocol):
    """What can be swept: a provider of hosts, or all that ours start somewhere. Closed with `close` if it has one."""

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """See `HostProvider.sweep`."""
        ...


async def clean_up(
    backends: Sequence[str] = (), *, remove: bool = True, images: bool = False
) -> list[Swept]:
    """Find what dead runs left on these backends (none named: on all), and remove it unless `remove` is False.

    With `images`, also what runs keep on purpose for later ones, which live runs do well without.
    A backend that this machine has not got is an entry that says so. Raises `BackendConfigError` for an unknown name.
    """
    unknown = set(backends) - set(_PROVIDERS)
    if unknown:
        raise BackendConfigError(
            f"no backend {', '.join(sorted(unknown))} can be cleaned up; there is: {', '.join(_PROVIDERS)}"
        )
    names = backends or tuple(_PROVIDERS)
    return [await _sweep(name, remove=remove, images=images) for name in names]


async def _sweep(backend: str, *, remove: bool, images: bool) -> Swept:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return Swept(backend, await _found(_PROVIDERS[backend](), remove=remove, images=images))
    except TimeoutError:
        return Swept(backend, skipped=f"looking took over {_TIMEOUT_S:g} s")
    except BackendError as error:
        return Swept(backend, skipped=str(error))


async def _found(provider: Sweeper, *, remove: bool, images: bool) -> tuple[Leftover, ...]:
    try:
        found = await provider.sweep(remove=remove)
        clear_cache = getattr(provider, "clear_cache", None) if images else None
        return found + await clear_cache(remove=remove) if clear_cache is not None else found
    finally:
        close = getattr(provider, "close", None)
        if close is not None:
            await close()


def _local() -> Sweeper:
    from agentenv_backends.config import LocalConfig  # noqa: PLC0415 - when needed
    from agentenv_backends.local import LocalProvider  # noqa: PLC0415 - when needed

    return LocalProvider(LocalConfig())


def _docker() -> Sweeper:
    from agentenv_backends.config import DockerConfig  # noqa: PLC0415 - when needed

    try:
        from agentenv_backends.docker.provider import DockerProvider  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"{error.name} is not installed: `pip install 'agentenv[docker]'`"
        ) from error
    return DockerProvider(DockerConfig())


def _nomad() -> Sweeper:
    from agentenv_backends.config import NomadConfig  # noqa: PLC0415 - when needed
    from agentenv_backends.nomad.provider import NomadProvider  # noqa: PLC0415 - when needed

    return NomadProvider(NomadConfig())


def _modal() -> Sweeper:
    from agentenv_backends.config.pool import needs_extra  # noqa: PLC0415 - when needed

    try:
        from agentenv_backends.modal.owners import EveryApp  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise needs_extra("modal", error.name) from error
    return EveryApp()


_PROVIDERS: dict[str, Callable[[], Sweeper]] = {
    "local": _local,
    "docker": _docker,
    "nomad": _nomad,
    "modal": _modal,
}
BACKENDS = tuple(_PROVIDERS)
"""Those that can be cleaned up."""
