"""The host: one event loop between the driver's stream and the slots' streams.

It runs as long as the driver does. End of the driver's stream, a lease that is not renewed, a frame that is none, or
SIGTERM: all slots are ended and the process exits.
"""

from __future__ import annotations

import json
import logging
import os
import time
from functools import partial
from typing import Callable, Dict, List, Optional

from . import frames
from .driver import DriverStream, Ending
from .facts import prepare
from .launcher import HostError, Launcher
from .lent_shell import Outside
from .loop import IN, OUT, Loop
from .reading import ReadingBudget
from .settings import HostSettings
from .slot_processes import Children, kill_descendants
from .slots import ENDING, STARTING, Slot, SlotBrokenError, SlotHitError
from .snapshots import Snapshots

GREETING_S = 60.0
START_S = 20.0
END_S = 5.0
CLOSE_LATER_S = 0.05
"""How long a slot that is to be closed may wait for others to be given their workspaces: its end holds up mounts."""
MAX_WAITING = 256 << 20
"""Bytes of requests that wait for their slots, all together."""
MAX_UNFINISHED = 128 << 20
"""Bytes of answers that are still arriving, beyond which only one slot at a time goes on."""
RESETS = 2
"""How often the end of a slot is tried to be proved, and how long is waited when that cannot even begin."""
RESET_PAUSE_S = 0.5
NOT_CLEAN = "; something of it may be left, so its folders and ids are not used again"
_SMALL = 4096
_log = logging.getLogger("agentenv.sandboxd")


class Server:
    """Serves one driver, over a descriptor to read from and one to write to."""

    def __init__(self, reading: int, writing: int) -> None:
        self._loop = Loop()
        self._driver = DriverStream(reading, writing, self._loop, self._take)
        self._slots: Dict[int, Slot] = {}
        self._by_pid: Dict[int, Slot] = {}
        self._children = Children(os.getpid())
        self._closing: List[Slot] = []
        """To be ended when no snapshot is under way, or a moment later."""
        self._budget = ReadingBudget(self._loop, MAX_UNFINISHED)
        self._owner_fd = -1
        self._launcher: Optional[Launcher] = None
        self._snapshots: Optional[Snapshots] = None
        self._lease_s = GREETING_S
        self._shutdown_request: Optional[int] = None
        self._kinds: Dict[int, Callable[[frames.Frame], None]] = {
            frames.HELLO: self._hello,
            frames.OPEN: self._open,
            frames.CLOSE: self._close,
            frames.REQUEST: self._request,
            frames.CANCEL: self._cancel,
            frames.PING: self._ping,
            frames.SHUTDOWN: self._shutdown,
            frames.SNAPSHOT: self._snapshot,
        }

    def run(self) -> None:
        """Serve until there is a reason to end; returns when nothing of the host is left."""
        reason = ""
        try:
            self._loop.watch_signals(self._reap, self._terminate)
            self._driver.listen()
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
        if self._driver.is_stalled:
            self._driver.wait()  # the slots must wait with us
        else:
            self._loop.turn()
        self._driver.flush()
        self._loop.run_timers()
        if self._closing and self._snapshots is not None and not self._snapshots.are_busy:
            self._end_closed()

    def _terminate(self) -> None:
        raise Ending("SIGTERM")

    def _check_lease(self, lease_s: float) -> None:
        if lease_s != self._lease_s:
            return  # another term has begun, with its own checks
        left = self._driver.last_heard + lease_s - time.monotonic()
        if left <= 0:
            raise Ending("nothing heard from the driver for %g s" % lease_s)
        self._loop.later(left, partial(self._check_lease, lease_s))

    def _outlive(self, lifetime_s: float) -> None:
        raise Ending("its lifetime of %g s is over" % lifetime_s)

    def _take(self, frame: frames.Frame) -> None:
        handler = self._kinds.get(frame.kind)
        if handler is None or (self._launcher is None) != (frame.kind == frames.HELLO):
            raise Ending("a frame of kind %d is out of place" % frame.kind)
        handler(frame)

    # --- what the driver asks ---------------------------------------------------------------------------------------

    def _hello(self, frame: frames.Frame) -> None:
        try:
            settings = HostSettings.from_json(json.loads(frame.header))
            self._watch_owner(settings.owner_pid)
            self._launcher, facts = prepare(settings)
        except (HostError, ValueError, TypeError, OSError) as error:
            self._driver.fail(0, frame.request_id, str(error))
            self._driver.flush()
            raise Ending("cannot work as asked: %s" % error) from error
        self._lease_s = settings.lease_s
        self._driver.last_heard = time.monotonic()
        self._check_lease(self._lease_s)
        if settings.max_lifetime_s is not None:
            self._loop.later(
                settings.max_lifetime_s, partial(self._outlive, settings.max_lifetime_s)
            )
        self._snapshots = Snapshots(
            self._driver,
            self._launcher,
            self._loop,
            flush=self._send_to,
            end=self._end,
        )
        self._driver.reply(frame, **facts.to_json())

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
            self._driver.fail(frame.channel, frame.request_id, "cannot start a slot: %s" % error)
            return
        slot_id = str(json.loads(frame.header)["slot"])
        slot = Slot(frame.channel, slot_id, process, frame.request_id)
        slot.outside = Outside(
            self._loop, self._driver.put, partial(self._send_to, slot), partial(self._end, slot)
        )
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
            self._driver.reply(frame)
            return
        slot.close_requests.append(frame.request_id)
        if self._snapshots is not None and self._snapshots.are_busy:
            self._closing.append(slot)
            self._loop.later(CLOSE_LATER_S, self._end_closed)
        else:
            self._end(slot, "")

    def _end_closed(self) -> None:
        closing, self._closing = self._closing, []
        for slot in closing:
            self._end(slot, "")

    def _request(self, frame: frames.Frame) -> None:
        slot = self._slots.get(frame.channel)
        if slot is None or slot.state == ENDING:
            self._driver.fail(frame.channel, frame.request_id, "there is no such slot")
            return
        if slot.was_hit():  # since its last answer, when what it left running may have been
            self._end(slot, str(SlotHitError()))
            return
        if not self._has_room_for(frame) or not slot.submit(frame):
            message = "too many requests wait for this slot"
            self._driver.reply(frame, failure="bad_request", message=message)
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
                self._driver.fail(frame.channel, frame.request_id, "withdrawn before it began")
            self._send_to(slot)

    def _snapshot(self, frame: frames.Frame) -> None:
        assert self._snapshots is not None
        self._snapshots.take_frame(frame, self._slots.get(frame.channel))

    def _ping(self, frame: frames.Frame) -> None:
        self._driver.reply(frame)

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
            except SlotHitError as error:
                self._end(slot, str(error))
                return
            if answers is None:
                self._end(slot, "its init is gone", hang_up=True)
                return
            for answer in answers:
                self._driver.put(answer)
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
        slot.died_by_itself = hang_up and not slot.was_starting
        slot.leave_shell()
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
            if pid == slot.reset_pid:
                self._reset_ended(slot, proved=status == 0)
            elif slot.process.left_to_us():
                self._by_pid[slot.process.init_pid] = slot
                slot.process.kill()
            else:
                self._ended(slot, status)

    def _ended(self, slot: Slot, status: int) -> None:
        """Its init is dead and reaped; what it has left is seen to next."""
        self._end(slot, "its init is gone", hang_up=True)
        slot.note_death(status)
        if self._snapshots is not None:
            self._snapshots.slot_ended(slot)
        process = slot.process
        if not process.confined and (process.parts.home is None or process.is_root):
            self._end_orphans()
        self._reset(slot)

    def _end_orphans(self) -> None:
        """What an init that was killed has left is now below this process, next to the other inits."""
        assert self._launcher is not None
        template = self._launcher.template
        spare = {*self._by_pid, *((template.pid,) if template is not None else ())}
        # The look at all processes takes longer than the whole life of a small slot, and seldom finds any.
        if not spare.issuperset(self._children.read()):
            kill_descendants(os.getpid(), spare)

    def _reset(self, slot: Slot) -> None:
        assert self._launcher is not None
        slot.resets += 1
        try:
            slot.reset_pid = self._launcher.start_reset(slot.process)
        except OSError as error:
            _log.warning("slot %s: its reset cannot begin: %s", slot.slot_id, error)
            self._loop.later(RESET_PAUSE_S, lambda: self._reset_ended(slot, proved=False))
            return
        if slot.reset_pid:
            self._by_pid[slot.reset_pid] = slot
        else:
            self._gone(slot)

    def _reset_ended(self, slot: Slot, *, proved: bool) -> None:
        slot.reset_pid = 0
        if proved or slot.resets >= RESETS:
            self._gone(slot, clean=proved)
        else:
            self._reset(slot)

    def _gone(self, slot: Slot, *, clean: bool = True) -> None:
        """Nothing of it is left, or (not `clean`) what it had is never given to another."""
        assert self._launcher is not None
        del self._slots[slot.channel]
        self._launcher.finish(slot.process, reusable=clean and not self._launcher.single_use)
        reason = slot.reason if clean else slot.reason + NOT_CLEAN
        for request_id in slot.close_requests:
            if clean:
                self._driver.put(
                    frames.encode(frames.REPLY, channel=slot.channel, request_id=request_id)
                )
            else:
                self._driver.fail(slot.channel, request_id, reason)
        if slot.was_starting:
            self._driver.fail(slot.channel, slot.open_request, reason)
        elif not slot.close_requests:
            self._driver.tell(
                frames.SLOT_LOST, slot.channel, reason=reason, exhausted=slot.exhausted
            )

    def _end_all(self, reason: str) -> None:
        for slot in list(self._slots.values()):
            self._end(slot, reason)
        self._driver.leave()
        self._loop.unwatch(self._owner_fd)
        deadline = time.monotonic() + END_S + 1
        while self._slots and time.monotonic() < deadline:
            try:
                self._loop.turn()
                self._loop.run_timers()
            except Ending as again:
                _log.debug("already ending; also: %s", again)
        if self._snapshots is not None:
            self._snapshots.close()
        if self._launcher is not None:
            self._launcher.close()
        self._say_goodbye(reason)

    def _say_goodbye(self, reason: str) -> None:
        if self._shutdown_request is not None:
            self._driver.put(frames.encode(frames.REPLY, request_id=self._shutdown_request))
        else:
            self._driver.tell(frames.CLOSING, 0, reason=reason)
        self._driver.say_last()
