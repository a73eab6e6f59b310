"""The host: one event loop between the driver's stream and the slots' streams.

It runs as long as the driver does. End of the driver's stream, a lease that is not renewed, a frame that is none, or
SIGTERM: all slots are ended and the process exits.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import time
from functools import partial
from typing import Callable, Dict, Optional

from . import frames
from .facts import probe
from .launcher import HostError, Launcher
from .loop import IN, OUT, Loop
from .outbox import Outbox
from .reading import ReadingBudget
from .settings import HostSettings
from .slot_processes import kill_descendants
from .slots import ENDING, STARTING, Slot, SlotBrokenError

GREETING_S = 60.0
START_S = 20.0
END_S = 5.0
MAX_WAITING = 256 << 20
"""Bytes of requests that wait for their slots, all together."""
MAX_UNSENT = 16 << 20
"""Bytes the driver has not taken yet, beyond which slots are not listened to."""
MAX_UNFINISHED = 128 << 20
"""Bytes of answers that are still arriving, beyond which only one slot at a time goes on."""
OUT_OF_MEMORY = ": the slot used up its memory and the kernel killed it"
"""Tells the end that a command can bring upon its own slot from all others."""
_RECEIVE = 1 << 18
_STALLED_POLL_MS = 1000
_SMALL = 4096
_log = logging.getLogger("agentenv.sandboxd")


class Ending(Exception):  # noqa: N818 - not an error: the one way out of the loop
    """The host ends, for this reason."""


class Server:
    """Serves one driver."""

    def __init__(self, driver: socket.socket) -> None:
        driver.setblocking(False)
        self._driver = driver
        self._reader = frames.FrameReader()
        self._outbox = Outbox(driver)
        self._writing = False
        self._loop = Loop()
        self._slots: Dict[int, Slot] = {}
        self._by_pid: Dict[int, Slot] = {}
        self._budget = ReadingBudget(self._loop, MAX_UNFINISHED)
        self._owner_fd = -1
        self._launcher: Optional[Launcher] = None
        self._lease_s = GREETING_S
        self._last_heard = time.monotonic()
        self._shutdown_request: Optional[int] = None
        self._kinds: Dict[int, Callable[[frames.Frame], None]] = {
            frames.HELLO: self._hello,
            frames.OPEN: self._open,
            frames.CLOSE: self._close,
            frames.REQUEST: self._request,
            frames.CANCEL: self._cancel,
            frames.PING: self._ping,
            frames.SHUTDOWN: self._shutdown,
        }

    def run(self) -> None:
        """Serve until there is a reason to end; returns when nothing of the host is left."""
        reason = ""
        try:
            self._loop.watch_signals(self._reap, self._terminate)
            self._loop.watch(self._driver.fileno(), self._driver_ready)
            self._check_lease(self._lease_s)
            while True:
                self._turn()
        except Ending as ending:
            reason = str(ending)
            _log.info("ending: %s", reason)
        finally:
            self._end_all(reason)

    # --- the loop -------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        if self._outbox.size > MAX_UNSENT:
            self._driver_ready(self._only_driver())
        else:
            self._loop.turn()
        if self._outbox.size:
            self._flush()
        self._loop.run_timers()

    def _only_driver(self) -> int:
        """Wait for the driver alone, which does not read what it is sent: the slots must wait with us."""
        poller = select.poll()
        poller.register(self._driver.fileno(), select.POLLIN | select.POLLOUT)
        ready = poller.poll(_STALLED_POLL_MS)
        return ready[0][1] if ready else 0

    def _terminate(self) -> None:
        raise Ending("SIGTERM")

    def _check_lease(self, lease_s: float) -> None:
        if lease_s != self._lease_s:
            return  # another term has begun, with its own checks
        left = self._last_heard + lease_s - time.monotonic()
        if left <= 0:
            raise Ending("nothing heard from the driver for %g s" % lease_s)
        self._loop.later(left, partial(self._check_lease, lease_s))

    # --- the driver's stream --------------------------------------------------------------------------------------

    def _driver_ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if not events & ~OUT:
            return
        try:
            data = self._driver.recv(_RECEIVE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            raise Ending("the driver is gone")
        self._last_heard = time.monotonic()
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except frames.FrameError as error:
            raise Ending("the driver's stream is broken: %s" % error) from error

    def _take(self, frame: frames.Frame) -> None:
        handler = self._kinds.get(frame.kind)
        if handler is None or (self._launcher is None) != (frame.kind == frames.HELLO):
            raise Ending("a frame of kind %d is out of place" % frame.kind)
        handler(frame)

    def _flush(self) -> None:
        try:
            done = self._outbox.flush()
        except OSError as error:
            raise Ending("the driver is gone") from error
        if done == self._writing:
            self._writing = not done
            self._loop.modify(self._driver.fileno(), IN | OUT if self._writing else IN)

    def _reply(self, frame: frames.Frame, **values: object) -> None:
        self._outbox.put(
            frames.encode(
                frames.REPLY,
                channel=frame.channel,
                request_id=frame.request_id,
                header=_json(values),
            )
        )

    def _fail(self, channel: int, request_id: int, message: str) -> None:
        self._outbox.put(
            frames.encode(
                frames.FAILED,
                channel=channel,
                request_id=request_id,
                header=_json({"message": message}),
            )
        )

    # --- what the driver asks ---------------------------------------------------------------------------------------

    def _hello(self, frame: frames.Frame) -> None:
        try:
            settings = HostSettings.from_json(json.loads(frame.header))
            self._watch_owner(settings.owner_pid)
            self._launcher = Launcher(settings)
            facts = probe(self._launcher)
        except (HostError, ValueError, TypeError, OSError) as error:
            self._fail(0, frame.request_id, str(error))
            self._flush()
            raise Ending("cannot work as asked: %s" % error) from error
        self._lease_s = settings.lease_s
        self._last_heard = time.monotonic()
        self._check_lease(self._lease_s)
        self._reply(frame, **facts.to_json())

    def _watch_owner(self, pid: int) -> None:
        """A process descriptor follows the whole driver; PDEATHSIG would follow the one thread that started us."""
        if pid and pid == os.getppid():
            if hasattr(os, "pidfd_open"):

                def gone(_: int) -> None:
                    raise Ending("the driver's process is gone")

                self._owner_fd = os.pidfd_open(pid)
                self._loop.watch(self._owner_fd, gone)
            if os.getppid() != pid:
                raise Ending("the driver's process is gone")

    def _open(self, frame: frames.Frame) -> None:
        assert self._launcher is not None
        if frame.channel in self._slots or not frame.channel:
            raise Ending("channel %d is taken" % frame.channel)
        try:
            process = self._launcher.start()
        except (HostError, OSError) as error:
            self._fail(frame.channel, frame.request_id, "cannot start a slot: %s" % error)
            return
        slot_id = str(json.loads(frame.header)["slot"])
        slot = Slot(frame.channel, slot_id, process, frame.request_id)
        self._slots[slot.channel] = slot
        self._by_pid[process.pid] = slot
        self._loop.watch(process.stream.fileno(), partial(self._slot_ready, slot))
        self._send_to(slot)
        self._loop.later(START_S, lambda: self._check_started(slot))

    def _check_started(self, slot: Slot) -> None:
        if slot.state == STARTING:
            self._end(slot, "it did not start within %g s" % START_S)

    def _close(self, frame: frames.Frame) -> None:
        slot = self._slots.get(frame.channel)
        if slot is None:
            self._reply(frame)
            return
        slot.close_requests.append(frame.request_id)
        self._end(slot, "")

    def _request(self, frame: frames.Frame) -> None:
        slot = self._slots.get(frame.channel)
        if slot is None or slot.state == ENDING:
            self._fail(frame.channel, frame.request_id, "there is no such slot")
            return
        if not self._has_room_for(frame) or not slot.submit(frame):
            message = "too many requests wait for this slot"
            self._reply(frame, failure="bad_request", message=message)
            return
        self._send_to(slot)

    def _has_room_for(self, frame: frames.Frame) -> bool:
        if len(frame.raw) <= _SMALL:
            return True  # bounded by the number that a slot lets wait
        waiting = sum(slot.queued_bytes + slot.outbox.size for slot in self._slots.values())
        return waiting + len(frame.raw) <= MAX_WAITING

    def _cancel(self, frame: frames.Frame) -> None:
        slot = self._slots.get(frame.channel)
        if slot is not None and slot.state != ENDING:
            if slot.cancel(frame):
                self._fail(frame.channel, frame.request_id, "withdrawn before it began")
            self._send_to(slot)

    def _ping(self, frame: frames.Frame) -> None:
        self._reply(frame)

    def _shutdown(self, frame: frames.Frame) -> None:
        self._shutdown_request = frame.request_id
        raise Ending("asked to")

    # --- slots ------------------------------------------------------------------------------------------------------

    def _send_to(self, slot: Slot) -> None:
        try:
            done = slot.outbox.flush()
        except OSError:
            # Its end is closed; the loop hears of that as well, with whatever it still had to say.
            return
        if not done or slot.writing:
            slot.writing = not done
            self._loop.modify(slot.process.stream.fileno(), IN if done else IN | OUT)

    def _slot_ready(self, slot: Slot, events: int) -> None:
        if events & ~OUT:
            before = slot.reader.pending
            try:
                answers = slot.receive()
            except SlotBrokenError as error:
                self._end(slot, "it broke the protocol: %s" % error)
                return
            if answers is None:
                self._end(slot, "its init is gone", hang_up=True)
                return
            for answer in answers:
                self._outbox.put(answer)
            if before or slot.reader.pending:
                self._budget.update(slot)
        if slot.outbox.size:
            self._send_to(slot)

    def _end(self, slot: Slot, reason: str, *, hang_up: bool = False) -> None:
        """Begin a slot's end; `_ended` follows when nothing of it runs. An init that is gone is not signalled."""
        if slot.state == ENDING:
            return
        slot.was_starting = slot.state == STARTING
        slot.state = ENDING
        slot.reason = reason
        self._loop.unwatch(slot.process.stream.fileno())
        self._budget.update(slot)
        if hang_up:
            slot.process.hang_up()
        else:
            slot.process.end()
        self._loop.later(END_S, lambda: self._kill_late(slot))

    def _kill_late(self, slot: Slot) -> None:
        if slot.channel in self._slots:
            slot.process.kill()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            slot = self._by_pid.pop(pid, None)
            if slot is None:
                continue
            if pid == slot.process.pid:
                slot.process.pid = 0
            if slot.process.left_to_us():
                self._by_pid[slot.process.init_pid] = slot
                slot.process.kill()
            else:
                self._ended(slot, status)

    def _ended(self, slot: Slot, status: int) -> None:
        assert self._launcher is not None
        self._end(slot, "its init is gone", hang_up=True)
        del self._slots[slot.channel]
        if not slot.process.confined:
            # What an init that was killed has left is now below this process, next to the other inits.
            kill_descendants(os.getpid(), spare=self._by_pid)
        errors = slot.process.error_text()
        group = slot.process.parts.group
        out_of_memory = group is not None and group.note_oom_kills()
        exhausted = out_of_memory and group is not None and group.reached_memory_limit()
        self._launcher.finish(slot.process)
        for request_id in slot.close_requests:
            self._outbox.put(
                frames.encode(frames.REPLY, channel=slot.channel, request_id=request_id)
            )
        reason = slot.reason or "it was closed"
        reason += OUT_OF_MEMORY if out_of_memory else _described(status)
        if errors:
            reason += ": " + errors
        if slot.was_starting:
            self._fail(slot.channel, slot.open_request, reason)
        elif not slot.close_requests:
            header = _json({"reason": reason, "exhausted": exhausted})
            self._outbox.put(frames.encode(frames.SLOT_LOST, channel=slot.channel, header=header))

    def _end_all(self, reason: str) -> None:
        for slot in list(self._slots.values()):
            self._end(slot, reason)
        self._loop.unwatch(self._driver.fileno())
        self._loop.unwatch(self._owner_fd)
        deadline = time.monotonic() + END_S + 1
        while self._slots and time.monotonic() < deadline:
            try:
                self._loop.turn()
                self._loop.run_timers()
            except Ending as again:
                _log.debug("already ending; also: %s", again)
        if self._launcher is not None:
            self._launcher.close()
        self._say_goodbye(reason)

    def _say_goodbye(self, reason: str) -> None:
        if self._shutdown_request is not None:
            self._outbox.put(frames.encode(frames.REPLY, request_id=self._shutdown_request))
        else:
            self._outbox.put(frames.encode(frames.CLOSING, header=_json({"reason": reason})))
        try:
            self._driver.settimeout(1.0)
            self._outbox.flush()
        except OSError:
            return


def _described(status: int) -> str:
    """A wait status for people; nothing for an ordinary end."""
    if os.WIFSIGNALED(status):
        return " (killed by signal %d)" % os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    return " (exit code %d)" % code if code else ""


def _json(values: object) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode("ascii")
