"""Where a service listens, and how long: until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any, Protocol

from agentenv_tools.errors import ToolConfigError
from agentenv_tools.serving.settings import host_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from agentenv_tools.serving.settings import ServeSettings

logger = logging.getLogger(__name__)


class Stoppable(Protocol):
    """Something that takes calls."""

    settings: ServeSettings

    async def close(self, grace_s: float | None = None) -> None:
        """Refuse new calls, and end those under way after `grace_s` (None: `stop_grace_s`). Bounded, idempotent."""
        ...


async def run_until_stopped(
    running: AbstractAsyncContextManager[str], service: Stoppable, announce: Callable[[str], None]
) -> None:
    """Hold `running`, which yields the URL, until SIGINT or SIGTERM. `announce` is called once requests are taken.

    A second signal ends calls under way at once.
    """
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        async with running as url:
            announce(url)
            await stop.wait()
            logger.info("stopping: calls under way have %g s", service.settings.stop_grace_s)
            await _unless(hurry, service.close())
            if hurry.is_set():
                await service.close(0)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _unless(hurry: asyncio.Event, closing: Coroutine[Any, Any, None]) -> None:
    waits = {asyncio.ensure_future(hurry.wait()), asyncio.ensure_future(closing)}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
        await asyncio.wait(waits)


def listen(settings: ServeSettings) -> socket.socket:
    """A socket at the settings' address. Raises `ToolConfigError` when it cannot be had."""
    host = host_of(settings.host) if settings.host.startswith("[") else settings.host
    try:
        info = socket.getaddrinfo(
            host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named, asyncio turns Nagle's algorithm off; else each answer takes 40 ms.
        listener = socket.socket(info[0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(info[4])
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ToolConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}; choose another "
            "address or port"
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where it can be reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
