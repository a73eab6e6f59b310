"""One session with an MCP server, owned by one task.

anyio's scopes must be left in the task that entered them. So a task of the session's own enters the transport and the
`ClientSession`, waits, and leaves them; calls come from any task, since a request is only two queues to them.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from mcp import ClientSession, types
from mcp.shared.exceptions import McpError
from pydantic import ValidationError

from agentenv_tools.errors import (
    ToolServerError,
    ToolServerProtocolError,
    ToolServerTimeoutError,
    ToolServerUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.client.session import MessageHandlerFnT
    from mcp.shared.message import SessionMessage

    Streams = tuple[
        MemoryObjectReceiveStream[SessionMessage | Exception],
        MemoryObjectSendStream[SessionMessage],
    ]
    Connect = Callable[[Callable[[str], None]], AbstractAsyncContextManager[Streams]]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_PAGES = 100
_MAX_TOOLS = 1_000
_WITHDRAW_S = 1.0
_PING_S = 5.0
_CLOSE_S = 30.0
_GONE = frozenset({types.CONNECTION_CLOSED, 32600})
"""JSON-RPC codes by which the library says that the session is over."""


class McpSession:
    """Opened once, closed once. Every wait is bounded but that for a call's answer, which is the caller's to bound."""

    def __init__(self, origin: str, connect: Connect, mask: Callable[[str], str]) -> None:
        """`connect` is told by its argument what to call when the server is of no more use."""
        self._origin = origin
        self._connect = connect
        self._mask = mask
        self._session: _Session | None = None
        self._owner: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._cause: str | None = None

    @property
    def alive(self) -> bool:
        """Whether calls can be tried."""
        return self._session is not None and not self._closing.is_set()

    def lost(self) -> ToolServerUnavailableError:
        """The error for calls to a session that is over."""
        return ToolServerUnavailableError(
            f"{self._origin} is gone: {self._cause or 'it was closed'}"
        )

    async def open(self, timeout_s: float) -> None:
        """Connect and shake hands. Raises `ToolServerError`; nothing is left then."""
        self._owner = asyncio.create_task(self._own(), name=f"session with {self._origin}")
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait(
                {self._owner, ready}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            await self.close()
            raise
        finally:
            ready.cancel()
        if self.alive:
            return
        hung = not self._owner.done() and self._cause is None
        await self.close()
        if hung:
            raise ToolServerTimeoutError(
                f"{self._origin} did not start within start_timeout_s={timeout_s:g}"
            )
        raise ToolServerUnavailableError(
            f"{self._origin} did not start: {self._cause or 'it left'}"
        )

    async def close(self) -> None:
        """End the session, and the server if it was started for it. Bounded and idempotent; never raises."""
        owner = self._owner
        if owner is None:
            return
        self._closing.set()
        cancelled: asyncio.CancelledError | None = None
        for _ in ("by itself", "cancelled"):
            try:
                await asyncio.wait({owner}, timeout=_CLOSE_S)
            except asyncio.CancelledError as error:
                cancelled = error
            if owner.done():
                break
            owner.cancel()
        else:
            logger.error("%s does not let itself be closed", self._origin)
        if cancelled is not None:
            raise cancelled

    async def list_tools(self, timeout_s: float) -> list[types.Tool]:
        """Every page of the list. Raises `ToolServerError`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._pages()
        except McpError as error:
            raise ToolServerProtocolError(
                f"{self._origin} does not list its tools: {self._mask(error.error.message)}"
            ) from error
        except TimeoutError as error:
            raise ToolServerTimeoutError(
                f"{self._origin} did not list its tools within start_timeout_s={timeout_s:g}"
            ) from error

    async def call(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Have a tool called. Cancelling this tells the server to stop.

        Raises `McpError` for what the server refuses, `ToolServerError` for what it fails at.
        """
        return await self._while_alive(lambda session: session.call(tool, arguments))

    async def must_answer(self) -> None:
        """Return when the server has answered a ping. Raises `ToolServerError`, and the session is over then."""
        try:
            async with asyncio.timeout(_PING_S):
                await self._while_alive(lambda session: session.send_ping())
        except McpError:
            return  # a refusal is an answer
        except TimeoutError as error:
            self._broken(f"it does not answer a ping within {_PING_S:g}s")
            raise ToolServerTimeoutError(
                f"{self._origin} answers neither a call nor a ping"
            ) from error

    # ---- machinery ----

    async def _own(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                reads, writes = await stack.enter_async_context(self._connect(self._broken))
                session = _Session(reads, writes, self._heard)
                await stack.enter_async_context(session)
                await self._asked(session, lambda session: session.initialize())
                self._session = session
                self._ready.set()
                await self._closing.wait()
        except Exception as error:
            self._broken(_describe(error))
            logger.debug("%s failed", self._origin, exc_info=True)
        finally:
            self._session = None
            self._closing.set()

    def _broken(self, cause: str) -> None:
        """The server is of no more use. The first cause is kept."""
        if self._cause is None and not self._closing.is_set():
            self._cause = self._mask(cause)
            self._closing.set()

    async def _heard(self, message: object) -> None:
        """Everything the server says beside answers. A changed list of tools is ignored: prompts hold the first."""
        if isinstance(message, Exception) and not isinstance(message, RuntimeError):
            described = self._mask(_describe(message))  # first: half a secret is not known as one
            self._broken(f"it sent something unreadable: {described[:300]}")

    async def _pages(self) -> list[types.Tool]:
        tools: list[types.Tool] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            params = types.PaginatedRequestParams(cursor=cursor)
            page = await self._while_alive(partial(_page, params=params))
            tools += page.tools
            if page.nextCursor is None or len(tools) > _MAX_TOOLS:
                break
            cursor = page.nextCursor
        else:
            raise ToolServerProtocolError(f"{self._origin} lists tools without end")
        if len(tools) > _MAX_TOOLS:
            raise ToolServerProtocolError(f"{self._origin} has more than {_MAX_TOOLS} tools")
        return tools

    async def _while_alive(self, ask: Callable[[_Session], Coroutine[Any, Any, T]]) -> T:
        """What the server answers; an error as soon as the session is over, also in the middle."""
        session = self._session
        if session is None or self._closing.is_set():
            raise self.lost()
        return await self._asked(session, ask)

    async def _asked(
        self, session: _Session, ask: Callable[[_Session], Coroutine[Any, Any, T]]
    ) -> T:
        """As `_while_alive`, also while hands are shaken. The session's end ends the wait, whoever waits."""
        asking = asyncio.ensure_future(ask(session))
        ending = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise self.lost()
            return asking.result()
        except (anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            self._broken("the connection to it is closed")
            raise self.lost() from error
        except ValidationError as error:
            raise ToolServerProtocolError(f"{self._origin} sent a malformed answer") from error
        except McpError as error:
            if error.error.code in _GONE:
                raise await self._gone(error) from error
            raise
        finally:
            for task in (asking, ending):
                task.cancel()
            await asyncio.wait({asking, ending})
            if not asking.cancelled():
                asking.exception()  # seen: raised above, or the session's end is what matters

    async def _gone(self, error: McpError) -> ToolServerError:
        """The library noticed first; a moment later the transport says why."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._closing.wait()
        self._broken(error.error.message)
        return self.lost()


class _Session(ClientSession):
    """Tells the server when a call is withdrawn, which the library leaves to its users."""

    def __init__(
        self,
        reads: MemoryObjectReceiveStream[SessionMessage | Exception],
        writes: MemoryObjectSendStream[SessionMessage],
        heard: MessageHandlerFnT,
    ) -> None:
        super().__init__(
            reads,
            writes,
            message_handler=heard,
            client_info=types.Implementation(name="agentenv", version=_version()),
        )

    async def call(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        # Not `call_tool`: it would check a structured answer against the server's own schema, and turn the
        # server's slip into an exception, though the model only ever reads the text.
        params = types.CallToolRequestParams(name=tool, arguments=arguments)
        request = types.ClientRequest(types.CallToolRequest(params=params))
        request_id = self._request_id
        try:
            return await self.send_request(request, types.CallToolResult)
        except asyncio.CancelledError:
            with suppress(TimeoutError, anyio.ClosedResourceError, anyio.BrokenResourceError):
                async with asyncio.timeout(_WITHDRAW_S):
                    await self._withdraw(request_id)
            raise

    async def _withdraw(self, request_id: int) -> None:
        params = types.CancelledNotificationParams(requestId=request_id, reason="withdrawn")
        notification = types.CancelledNotification(params=params)
        await self.send_notification(types.ClientNotification(notification))


async def _page(session: _Session, params: types.PaginatedRequestParams) -> types.ListToolsResult:
    return await session.list_tools(params=params)


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ToolServerError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _version() -> str:
    try:
        return version("agentenv")
    except PackageNotFoundError:
        return "0"
