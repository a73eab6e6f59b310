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
from agentenv_backends.docker.boot import boot_payload
from agentenv_backends.docker.stream import AttachedStream
from agentenv_backends.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_backends._uids import UidRange
    from agentenv_backends.docker.engine import Engine
    from agentenv_backends.sandboxd.settings import HostSettings

_log = logging.getLogger(__name__)

_LEFT = (
    "the container ends by itself when the engine goes on, or when its lease runs out; what is left of it then, the "
    "next start or `agentenv cleanup` removes"
)
_GRACE_S = 5.0
"""How much later than a request's own deadline its answer is given up."""


class Container:
    """One container of ours, from before it exists until it is gone."""

    def __init__(self, engine: Engine, name: str, uids: UidRange | None) -> None:
        self.name = name
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
        how_it_ended = partial(self._engine.how_it_ended, self.name)
        self._stream = stream = AttachedStream(connection, how_it_ended)
        self._creating = asyncio.create_task(self._engine.create(self.name, options))
        # Not cancelled with us: only its answer tells whether there is something to remove.
        await asyncio.shield(self._creating)
        await self._engine.attach(self.name, stream)
        await self._engine.start(self.name)
        stream.write(boot_payload())
        await connection.greet(settings, timeout_s)
        return connection

    async def remove(self) -> None:
        """Kill it and return when it is gone. Raises `EngineError` when that cannot be had, and says what ends it."""
        try:
            if self._stream is not None:
                self._stream.abort()
            await self._engine.remove(self.name, after=self._creating)
        except EngineError as error:
            raise EngineError(f"{error}; {_LEFT}", transient=error.transient) from error
        finally:
            if self._creating is not None:
                self._creating.cancel()
            await self._engine.close()
            if self._uids is not None:
                self._uids.release()

    async def undo(self) -> None:
        """`remove` for a launch that failed, of which there is better to tell than of this."""
        try:
            await self.remove()
        except EngineError as error:
            _log.warning("a container is left: %s", error)
