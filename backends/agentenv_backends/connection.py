"""The driver's end of a host: requests out, results back, over one stream that all slots of the host share."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from agentenv_backends._deadlines import Deadlines
from agentenv_backends._snapshot_calls import SnapshotCalls
from agentenv_backends.errors import (
    HostLostError,
    HostStartError,
    SandboxTimeoutError,
    SlotExhaustedError,
    SlotLostError,
)
from agentenv_backends.results import OpFailure
from agentenv_backends.sandboxd import frames
from agentenv_backends.sandboxd.settings import HostFacts
from agentenv_backends.wire import decode_result, encode_request

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from agentenv_backends.sandboxd.settings import HostSettings

_log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 20.0
PING_TIMEOUT_S = 20.0
_HIGH_WATER = 8 << 20


async def connect_host(
    stream: socket.socket,
    host_id: str,
    settings: HostSettings,
    *,
    grace_s: float = 5.0,
    timeout_s: float = 60.0,
    on_close: Callable[[], Awaitable[None]] | None = None,
) -> HostConnection:
    """Greet the sandbox server at the other end of `stream` and return the connection to it.

    `on_close` is awaited once at the end of `HostConnection.close`: there the provider waits for the server's process.
    Takes over `stream`, also when it fails. Raises `HostStartError` with the server's own reason when it refuses.
    """
    stream.setblocking(False)
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: HostConnection(host_id, grace_s=grace_s, on_close=on_close), sock=stream
    )
    try:
        await connection.greet(settings, timeout_s)
    except BaseException:
        connection.abort()
        raise
    return connection


class _Slot:
    """A slot as the driver sees it."""

    __slots__ = ("busy_until", "channel", "pending", "slot_id", "workspace_dir")

    def __init__(self, channel: int, slot_id: str) -> None:
        self.channel = channel
        self.slot_id = slot_id
        self.workspace_dir = ""
        self.pending: set[asyncio.Future[frames.Frame]] = set()
        self.busy_until = 0.0


class HostConnection(SnapshotCalls, asyncio.Protocol):
    """A live host. Implements `agentenv_backends.host.Host`.

    Frames written in one turn of the event loop leave together. Memory is bounded by what is under way: at most a
    frame's size for each unanswered request, and `execute` waits while the host does not take what was sent.
    """

    def __init__(
        self,
        host_id: str,
        *,
        grace_s: float,
        goodbye_s: float = CLOSE_TIMEOUT_S,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.host_id = host_id
        self.facts: HostFacts | None = None
        """What is in force in this host's slots; set once connected."""
        self.expires_at: float | None = None
        """When it will be ended, by the loop's clock, whatever goes on in it; None: never."""
        self._grace_s = grace_s
        self._goodbye_s = goodbye_s
        """How long the host may take to end itself when asked to; 0: `on_close` ends it unasked."""
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = frames.FrameReader()
        self._unsent: list[bytes] = []
        self._has_room = True
        self._held_back: deque[tuple[asyncio.Future[None], bytes]] = deque()
        self._ids = itertools.count(1)
        self._channels = itertools.count(1)
        self._futures: dict[int, asyncio.Future[frames.Frame]] = {}
        self._deadlines = Deadlines()
        self._slots: dict[str, _Slot] = {}
        self._by_channel: dict[int, _Slot] = {}
        self._slot_lost: Callable[[str, SlotLostError], None] | None = None
        self._host_lost: Callable[[str], None] | None = None
        self._lost_reason: str | None = None
        self._closing: asyncio.Task[None] | None = None
        self._lease_timer: asyncio.TimerHandle | None = None

    # --- the Host protocol ----------------------------------------------------------------------------------------

    def on_slot_lost(self, callback: Callable[[str, SlotLostError], None]) -> None:
        """Call `callback(slot_id, reason)` when a slot dies by itself. At most one; set before any slot."""
        self._slot_lost = callback

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` once when the host is gone unasked. Set before any slot."""
        self._host_lost = callback

    def workspace_dir(self, slot_id: str) -> str:
        """The slot's workspace as its commands see it."""
        return self._slot(slot_id).workspace_dir

    async def open_slot(self, slot_id: str) -> None:
        """Build a slot and return when it takes commands. Raises `SlotLostError` or `HostLostError`."""
        if slot_id in self._slots:
            raise ValueError(f"slot {slot_id!r} is open already on host {self.host_id}")
        slot = _Slot(next(self._channels), slot_id)
        self._slots[slot_id] = self._by_channel[slot.channel] = slot
        header = json.dumps({"slot": slot_id}).encode("ascii")
        try:
            frame = await self._ask(frames.OPEN, slot, header=header, timeout_s=OPEN_TIMEOUT_S)
            slot.workspace_dir = json.loads(frame.header)["workspace"]
        except SandboxTimeoutError as error:
            self._abandon(slot)
            raise SlotLostError(str(error)) from error
        except BaseException:
            self._abandon(slot)
            raise

    async def close_slot(self, slot_id: str) -> None:
        """End a slot and return when no process of it is left. Unknown ids are no error.

        Raises `SandboxTimeoutError` when the host does not confirm it.
        """
        slot = self._slots.get(slot_id)
        if slot is None:
            return
        self._fail_slot(slot, SlotLostError(f"slot {slot.slot_id} is gone: it was closed"))
        try:
            await self._ask(frames.CLOSE, slot, timeout_s=CLOSE_TIMEOUT_S)
        except HostLostError:
            _log.debug("host %s went while it closed slot %s", self.host_id, slot_id)
        finally:
            self._forget(slot)

    async def execute(self, slot_id: str, request: Request, *, key: str | None = None) -> Result:
        """Carry one request; those of one slot run in the order they were sent.

        A request with a `key` that the slot has seen lately is answered with the same result and not run again.
        Cancelling withdraws the request: its process tree is killed inside the slot.
        Raises `SlotLostError`, `HostLostError`, or `SandboxTimeoutError` when there is no answer `grace_s` after the
        request's own deadline (counted from when the slot's earlier requests must have ended).
        """
        encoded = encode_request(request, key)
        if isinstance(encoded, OpFailure):
            return encoded
        slot = self._slot(slot_id)
        now = self._loop.time()
        slot.busy_until = max(now, slot.busy_until if slot.pending else 0.0) + encoded.timeout_s
        frame = await self._ask(
            frames.REQUEST,
            slot,
            header=encoded.header,
            body=encoded.body,
            timeout_s=slot.busy_until - now + self._grace_s,
        )
        try:
            return decode_result(request, frame)
        except (ValueError, KeyError, TypeError) as error:
            raise SlotLostError(f"slot {slot_id}: its answer makes no sense: {error!r}") from error

    async def ping(self) -> None:
        """Return when the host has answered, which also renews its lease. Raises `HostLostError`."""
        try:
            await self._ask(frames.PING, None, timeout_s=PING_TIMEOUT_S)
        except SandboxTimeoutError as error:
            raise HostLostError(str(error)) from error

    async def close(self) -> None:
        """End the host and everything in it; return when no process of it is left. Idempotent."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    # --- life of the connection -----------------------------------------------------------------------------------

    async def greet(self, settings: HostSettings, timeout_s: float) -> None:
        """Say what slots shall be like and hear what is in force. Raises `HostStartError`."""
        header = json.dumps(settings.to_json()).encode("ascii")
        try:
            frame = await self._ask(frames.HELLO, None, header=header, timeout_s=timeout_s)
        except (SlotLostError, HostLostError, SandboxTimeoutError) as error:
            raise HostStartError(f"host {self.host_id} did not start: {error}") from error
        self.facts = HostFacts.from_json(json.loads(frame.header))
        self._renew_lease(settings.lease_s / 3)

    def abort(self) -> None:
        """Drop the stream at once; the server ends with it."""
        if self._transport is not None:
            self._transport.abort()

    def _renew_lease(self, interval_s: float) -> None:
        """Any frame renews the lease; no answer is awaited, so nothing can pile up but one frame an interval."""
        self._lease_timer = self._loop.call_later(interval_s, self._renew_lease, interval_s)
        self._write(frames.encode(frames.PING))

    def give_up(self, reason: str) -> None:
        """The host is of no use any more, though its server may run: it is lost for this reason, and ends."""
        self._lose(reason)
        self.abort()

    async def _close(self) -> None:
        try:
            if self._lost_reason is None and self._goodbye_s:
                await self._ask(frames.SHUTDOWN, None, timeout_s=self._goodbye_s)
        except (HostLostError, SandboxTimeoutError) as error:
            _log.debug("host %s did not say goodbye: %s", self.host_id, error)
        finally:
            self._lose("it was closed")
            self.abort()
            if self._on_close is not None:
                await self._on_close()

    def _lose(self, reason: str) -> None:
        """The one place where a host becomes lost; later reasons change nothing."""
        if self._lost_reason is not None:
            return
        self._lost_reason = reason
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        self._deadlines.close()
        for future in list(self._futures.values()):
            _set_error(future, self._lost_error())
        if self._host_lost is not None and self._closing is None:
            self._host_lost(reason)

    def _lost_error(self) -> HostLostError:
        return HostLostError(f"host {self.host_id} is gone: {self._lost_reason}")

    # --- requests under way ---------------------------------------------------------------------------------------

    def _slot(self, slot_id: str) -> _Slot:
        if self._lost_reason is not None:
            raise self._lost_error()
        slot = self._slots.get(slot_id)
        if slot is None:
            raise SlotLostError(f"host {self.host_id} has no slot {slot_id!r}")
        return slot

    def _expect(self, slot: _Slot | None) -> tuple[int, asyncio.Future[frames.Frame]]:
        if self._lost_reason is not None:
            raise self._lost_error()
        request_id = next(self._ids)
        future: asyncio.Future[frames.Frame] = self._loop.create_future()
        self._futures[request_id] = future
        if slot is not None:
            slot.pending.add(future)
        return request_id, future

    async def _ask(
        self,
        kind: int,
        slot: _Slot | None,
        *,
        header: bytes = b"",
        body: bytes = b"",
        timeout_s: float,
    ) -> frames.Frame:
        request_id, future = self._expect(slot)
        channel = slot.channel if slot is not None else 0
        sent = frames.encode(kind, channel=channel, request_id=request_id, header=header, body=body)
        overdue = partial(self._overdue, future, slot, timeout_s)
        self._deadlines.add(request_id, self._loop.time() + timeout_s, overdue)
        try:
            if self._has_room and not self._held_back:
                self._write(sent)
                if kind == frames.SNAPSHOT:
                    self._flush()  # the host can begin with it while others are still being prepared
            else:
                await self._send_in_turn(sent, future)
            frame = await future
        except (asyncio.CancelledError, SandboxTimeoutError):
            if slot is not None and self._lost_reason is None:
                self._write(
                    frames.encode(frames.CANCEL, channel=slot.channel, request_id=request_id)
                )
            raise
        finally:
            self._deadlines.remove(request_id)
            del self._futures[request_id]
            if slot is not None:
                slot.pending.discard(future)
        if frame.kind == frames.FAILED:
            message = json.loads(frame.header)["message"]
            raise SlotLostError(f"slot {slot.slot_id}: {message}" if slot is not None else message)
        return frame

    async def _send_in_turn(self, frame: bytes, future: asyncio.Future[frames.Frame]) -> None:
        """The host does not take what it is sent: wait for room, first come first served, while `future` is open."""
        turn = (self._loop.create_future(), frame)
        self._held_back.append(turn)
        try:
            await asyncio.wait((turn[0], future), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not turn[0].done():
                self._held_back.remove(turn)

    def _overdue(
        self, future: asyncio.Future[frames.Frame], slot: _Slot | None, timeout_s: float
    ) -> None:
        who = f"slot {slot.slot_id} of host" if slot is not None else "host"
        _set_error(
            future, SandboxTimeoutError(f"{who} {self.host_id}: no answer for {timeout_s:g} s")
        )

    def _abandon(self, slot: _Slot) -> None:
        """Have a slot ended that nobody waits for any more."""
        if self._lost_reason is None and slot.slot_id in self._slots:
            self._write(frames.encode(frames.CLOSE, channel=slot.channel))
        self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
        self._slots.pop(slot.slot_id, None)
        self._by_channel.pop(slot.channel, None)

    def _fail_slot(self, slot: _Slot, error: SlotLostError) -> None:
        for future in list(slot.pending):
            _set_error(future, error)

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio: the stream is ours."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the stream has ended."""
        self._lose(f"its stream ended ({exc})" if exc else "its stream ended")

    def pause_writing(self) -> None:
        """Called by asyncio: the host does not take what it is sent."""
        self._has_room = False

    def resume_writing(self) -> None:
        """Called by asyncio: it does again."""
        self._has_room = True
        while self._has_room and self._held_back:
            turn, frame = self._held_back.popleft()
            turn.set_result(None)
            self._write_now(frame)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: bytes from the host."""
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except (frames.FrameError, ValueError, KeyError) as error:
            self._lose(f"it sent what is no frame: {error}")
            self.abort()

    def _take(self, frame: frames.Frame) -> None:
        if frame.kind in (frames.REPLY, frames.FAILED):
            future = self._futures.get(frame.request_id)
            # Nobody waits for answers to what was withdrawn.
            if future is not None and not future.done():
                future.set_result(frame)
        elif frame.kind == frames.SLOT_LOST:
            self._take_slot_lost(frame)
        elif frame.kind == frames.CLOSING:
            # A server that crashes knows no reason; the end of its stream, which follows, tells more.
            if reason := json.loads(frame.header)["reason"]:
                self._lose(reason)
        else:
            raise ValueError(f"kind {frame.kind}")

    def _take_slot_lost(self, frame: frames.Frame) -> None:
        slot = self._by_channel.get(frame.channel)
        if slot is None:
            return
        header = json.loads(frame.header)
        kind = SlotExhaustedError if header.get("exhausted") else SlotLostError
        error = kind(f"slot {slot.slot_id} is gone: {header['reason']}")
        self._forget(slot)
        self._fail_slot(slot, error)
        if self._slot_lost is not None:
            self._slot_lost(slot.slot_id, error)

    def _write(self, frame: bytes) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent:
            self._write_now(b"".join(unsent))

    def _write_now(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _set_error(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
