"""One sandbox from before it exists until it is gone.

It ends in five ways, whichever comes first: the driver ends it (`HostConnection.close`); its server ends, because
nobody renewed its lease, and then nothing runs in it for `idle_timeout_s`; its lifetime is over; a sweep ends it;
the service does.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from agentenv_backends._workspaces import DEFAULT_WORKSPACE
from agentenv_backends.connection import HostConnection
from agentenv_backends.docker.boot import BOOT_COMMAND, boot_payload
from agentenv_backends.errors import EngineError
from agentenv_backends.modal.service import ModalError
from agentenv_backends.modal.stream import ExecStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentenv_backends.modal.service import Service
    from agentenv_backends.sandboxd.settings import HostSettings

_log = logging.getLogger(__name__)

_LEFT = (
    "it ends by itself when its server's lease has run out and nothing runs in it any more; the next start or "
    "`agentenv cleanup` ends it sooner"
)
_GRACE_S = 5.0
"""How much later than a request's own deadline its answer is given up."""
_REMOVE_S = 8.0
"""Less than the pool allows for ending a host."""
_BEGUN_AFTER_ALL_S = 3.0
_PAUSE_S = 0.25


class Sandbox:
    """One sandbox of ours."""

    def __init__(
        self, service: Service, app_name: str, environment_name: str | None, name: str
    ) -> None:
        self.name = name
        """Known before the sandbox is, so that whatever happens it can be found."""
        self.working_dir = DEFAULT_WORKSPACE
        """The image's own, once it was looked up: where `options` of `bring_up` name none."""
        self._service = service
        self._app_name = app_name
        self._environment_name = environment_name
        self._beginning: asyncio.Task[Any] | None = None
        self._sandbox: Any = None
        self._stream: ExecStream | None = None
        self._expires_at = 0.0

    async def bring_up(
        self,
        host_id: str,
        options: Mapping[str, Any],
        settings: Callable[[float], HostSettings],
        timeout_s: float,
    ) -> HostConnection:
        """Create it, and connect to the server in it. Raises `ModalError` or `HostStartError`.

        `settings(seconds)` is what the server is told when the sandbox has so long to live.
        Whether or not that works, `remove` has to be called in the end; the connection's `close` does it.
        """
        now = asyncio.get_running_loop().time
        started = now()
        self._expires_at = started + options["timeout"]
        # Not cancelled with us: only its answer tells whether there is something to remove, and a connection that
        # the client is about to make it would forget.
        self._beginning = asyncio.create_task(self._begin(options, timeout_s))
        process = await asyncio.shield(self._beginning)
        left_s = max(started + timeout_s - now(), 1.0)
        connection = HostConnection(host_id, grace_s=_GRACE_S, goodbye_s=0, on_close=self.remove)
        connection.expires_at = self._expires_at
        self._stream = stream = ExecStream(process, self._look)
        stream.begin(connection)
        stream.write(boot_payload())
        await connection.greet(settings(self._expires_at - now()), left_s)
        return connection

    async def _begin(self, options: Mapping[str, Any], timeout_s: float) -> Any:
        """Create it, and start the server's process in it, which is returned."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        self._sandbox = await self._create(options, timeout_s)
        if options["workdir"] is None:
            left_s = max(deadline - asyncio.get_running_loop().time(), 1.0)
            self.working_dir = await self._service.working_dir(self._sandbox, left_s)
        left_s = max(deadline - asyncio.get_running_loop().time(), 1.0)
        return await self._service.run(self._sandbox, BOOT_COMMAND, left_s)

    async def _create(self, options: Mapping[str, Any], timeout_s: float) -> Any:
        try:
            return await self._service.create(options, timeout_s)
        except ModalError as error:
            if not error.exists:
                raise
            # Its name is nobody else's: an earlier try of this call did work, and its answer was lost.
            return await self._find()

    async def _find(self) -> Any:
        return await self._service.find(self._app_name, self.name, self._environment_name)

    async def _look(self) -> str | None:
        reason = await self._service.how_it_ended(self._sandbox)
        if reason is None and asyncio.get_running_loop().time() >= self._expires_at:
            return "its lifetime is over"
        return reason

    async def remove(self) -> None:
        """End it and return when it has ended. Raises `ModalError` when that cannot be had, and says what ends it."""
        try:
            if self._stream is not None:
                self._stream.abort()
                await self._stream.wait_closed()
            await self._terminate()
        except EngineError as error:
            raise EngineError(
                f"sandbox {self.name} may be left: {error}; {_LEFT}", transient=error.transient
            ) from error
        finally:
            if self._sandbox is not None:
                await self._service.let_go(self._sandbox)

    async def undo(self) -> None:
        """`remove` for a launch that failed, of which there is better to tell than of this."""
        try:
            await self.remove()
        except EngineError as error:
            _log.warning("%s", error)

    async def _terminate(self) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + _REMOVE_S
        while True:
            try:
                sandbox = await self._the_sandbox()
                if sandbox is not None:
                    await self._service.terminate(sandbox, max(deadline - now(), 1.0))
            except ModalError as error:
                if error.is_missing:
                    return
                if not error.transient or now() + _PAUSE_S > deadline:
                    raise
            else:
                return
            await asyncio.sleep(_PAUSE_S)

    async def _the_sandbox(self) -> Any:
        """What there is to end; None when nothing was made."""
        if self._beginning is None:
            return None
        await asyncio.wait({self._beginning}, timeout=_BEGUN_AFTER_ALL_S)
        self._beginning.cancel()
        if self._sandbox is None and not self._was_refused(self._beginning):
            self._sandbox = await self._find()
        return self._sandbox

    def _was_refused(self, beginning: asyncio.Task[Any]) -> bool:
        """Whether it is certain that there never was a sandbox."""
        if not beginning.done() or beginning.cancelled():
            return False
        error = beginning.exception()
        return isinstance(error, ModalError) and (not error.transient or error.is_busy)
