"""Opening the page beside a run, in the run's own event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentenv.control.pause import LONGEST_PAUSE_S, PauseGate
from agentenv.errors import ConfigError
from agentenv.watch.board import Board
from agentenv.watch.server import WatchServer
from agentenv_tools.errors import ToolConfigError
from agentenv_tools.serving import ServeSettings, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agentenv.watch.board import Slots

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8080
_PORTS_TRIED = 100
_MAX_CONNECTIONS = 64
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Watch:
    """A page that is served."""

    board: Board
    """To observe the rollouts."""
    gate: PauseGate
    """What the page pauses: for the harnesses."""
    url: str


@asynccontextmanager
async def watching(
    *,
    gate: PauseGate | None = None,
    cancel_all: Callable[[], object] | None = None,
    slots: Callable[[], Slots | None] = lambda: None,
    port: int = DEFAULT_PORT,
    announce: Callable[[str], None] | None = None,
) -> AsyncIterator[Watch]:
    """Serve a live page on the loopback interface within the block.

    `port` is the first that is tried; the next free one is taken, and `announce` is called with the address (None: it
    is logged, as a warning, which is seen also where logging was not set up). `gate` is what the page pauses (None: one
    is made), `cancel_all` how it ends everything (None: the task that entered the block is cancelled), `slots` is asked
    for the sandboxes. Raises `ConfigError` when no port is free.
    """
    task = asyncio.current_task()
    assert task is not None
    board, gate = Board(), gate or PauseGate(limit_s=LONGEST_PAUSE_S)
    async with AsyncExitStack() as stack:
        for candidate in range(port, min(port + _PORTS_TRIED, 65_536)):
            settings = ServeSettings(
                port=candidate, max_connections=_MAX_CONNECTIONS, stop_grace_s=1.0
            )
            server = WatchServer(
                settings, board, gate=gate, cancel_all=cancel_all or task.cancel, slots=slots
            )
            try:
                url = await stack.enter_async_context(serving(server))
            except (ToolConfigError, OSError) as error:
                if not _is_taken(error):
                    raise
                continue
            (announce or _log)(f"{url}/")
            yield Watch(board, gate, url)
            return
    raise ConfigError(f"no port for the live page is free from {port} on")


def _is_taken(error: BaseException) -> bool:
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _TAKEN


def _log(url: str) -> None:
    logger.warning("watch this run at %s", url)
