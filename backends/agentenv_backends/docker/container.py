"""One container from before it exists until it is gone.

It ends in four ways, whichever comes first: the driver ends it (`HostConnection.close`); its stream ends, because the
driver is gone, and with it the main process; its lease or its lifetime runs out; a sweep removes it.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from agentenv_backends.connection import HostConnection
from agentenv_backends.docker.boot import IMAGES_PYTHON, boot_payload
from agentenv_backends.docker.egress import PROXY_ARGUMENTS, Egress
from agentenv_backends.docker.stream import AttachedStream
from agentenv_backends.errors import EngineError, HostStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentenv_backends._uids import UidRange
    from agentenv_backends.allow_list import AllowList
    from agentenv_backends.docker.engine import Engine
    from agentenv_backends.docker.services import Services
    from agentenv_backends.sandboxd.settings import HostSettings

_log = logging.getLogger(__name__)

_LEFT = (
    "the container ends by itself when the engine goes on, or when its lease runs out; what is left of it then, the "
    "next start or `agentenv cleanup` removes"
)
_PROXY_S = 20.0
_LEAST_S = 5.0
"""For the server's greeting, however long services took."""
_PROXY_USER = "65534:65534"
_GRACE_S = 5.0
"""How much later than a request's own deadline its answer is given up."""


class Container:
    """One container of ours, from before it exists until it is gone."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        uids: UidRange | None,
        allowed: AllowList | None = None,
        python: Sequence[str] = IMAGES_PYTHON,
        services: Services | None = None,
    ) -> None:
        """`allowed` is what a container without network may reach all the same; `python` starts an interpreter;
        `services` are started before it, and end with it.
        """
        self.name = name
        self._services = services
        self._python = python
        self._allowed = allowed
        self._egress: Egress | None = None
        self._way_out: AttachedStream | None = None
        self._engine = engine
        self._uids = uids
        self._creating: asyncio.Task[None] | None = None
        self._stream: AttachedStream | None = None

    async def bring_up(
        self, host_id: str, options: Mapping[str, Any], settings: HostSettings, timeout_s: float
    ) -> HostConnection:
        """Make it, start it, and connect to the server in it. Raises `EngineError` or `HostStartError`.

        Whether or not that works, `remove` has to be called in the end; the connection's `close` does it.
        """
        connection = HostConnection(host_id, grace_s=_GRACE_S, goodbye_s=0, on_close=self.remove)
        if settings.max_lifetime_s is not None:
            now = asyncio.get_running_loop().time()
            connection.expires_at = now + settings.max_lifetime_s
        if self._services is not None:
            began = asyncio.get_running_loop().time()
            await self._services.bring_up(connection.give_up, timeout_s)
            timeout_s = max(timeout_s - (asyncio.get_running_loop().time() - began), _LEAST_S)
        how_it_ended = partial(self._engine.how_it_ended, self.name)
        self._stream = stream = AttachedStream(connection, how_it_ended)
        self._creating = asyncio.create_task(self._engine.create(self.name, options))
        # Not cancelled with us: only its answer tells whether there is something to remove.
        await asyncio.shield(self._creating)
        await self._engine.attach(self.name, stream)
        await self._engine.start(self.name)
        stream.write(boot_payload())
        if self._allowed is not None:
            # Before any slot, or one could take the proxy's place.
            # Commands that are root can end the proxy, which must not get them another try: they go on without it.
            on_lost = _nothing if settings.run_as_root else partial(self._lose, connection)
            try:
                await self._open_way_out(self._allowed, on_lost)
            except (EngineError, HostStartError):
                await connection.greet(
                    settings, timeout_s
                )  # raises the better reason, if that is it
                raise
        await connection.greet(settings, timeout_s)
        return connection

    async def _open_way_out(self, allowed: AllowList, on_lost: Callable[[], None]) -> None:
        """Start the proxy. Without it commands would fail for no fault of theirs: then the host is lost."""
        self._egress = egress = Egress(allowed, on_lost)
        self._way_out = AttachedStream(egress, self._why_no_way_out)
        command = (*self._python, *PROXY_ARGUMENTS)
        await self._engine.attach_process(self.name, command, _PROXY_USER, self._way_out)
        try:
            async with asyncio.timeout(_PROXY_S):
                await egress.ready
        except (TimeoutError, ConnectionError) as error:
            reason = error or f"it took over {_PROXY_S:g} s. {self._way_out.complaints}"
            raise HostStartError(
                f"the proxy in container {self.name} did not start: {reason}"
            ) from error

    def _lose(self, connection: HostConnection) -> None:
        """The proxy has ended. Where it never began, the launch fails, with the main process's reason if it has one."""
        if self._egress is not None and self._egress.began:
            connection.abort()

    async def _why_no_way_out(self) -> str:
        return f"the proxy in container {self.name} has ended"

    async def remove(self) -> None:
        """Kill it and return when it is gone. Raises `EngineError` when that cannot be had, and says what ends it."""
        try:
            for stream in (self._stream, self._way_out):
                if stream is not None:
                    stream.abort()
            if self._egress is not None:
                await self._egress.close()
            await self._remove_containers()
        except EngineError as error:
            raise EngineError(f"{error}; {_LEFT}", transient=error.transient) from error
        finally:
            if self._creating is not None:
                self._creating.cancel()
            await self._engine.close()
            if self._uids is not None:
                self._uids.release()

    async def _remove_containers(self) -> None:
        main = self._engine.remove(self.name, after=self._creating)
        if self._services is None:
            await main
            return
        results = await asyncio.gather(main, self._services.remove(), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result
        await self._services.remove_network()

    async def undo(self) -> None:
        """`remove` for a launch that failed, of which there is better to tell than of this."""
        try:
            await self.remove()
        except EngineError as error:
            _log.warning("a container is left: %s", error)


def _nothing() -> None:
    """The container is none the worse for it."""
