"""Snapshots of workspaces: taken of slots, given to other slots, carried to other hosts.

A snapshot is a *tree*, a mount that the helper for mounts holds (`mounts.py`), or an *archive*, a nameless file: in
memory, or where the slots' files are if those can share blocks with it (`reflinks.py`). A tree is given to a slot by an
overlay, in about a millisecond; an archive is packed and unpacked by the slot's own init, with its own rights and
limits. Where the kernel allows trees, an archive becomes one with the first slot that it is unpacked in; where it
refuses at some moment, the archive's way is taken.

What takes several steps is a generator: it yields what begins a step, and is sent the step's result.
"""

from __future__ import annotations

import json
import logging
import os
from functools import partial
from typing import Any, Callable, Dict, Generator, List, Optional, Set

from . import frames
from .driver import DriverStream
from .launcher import Launcher
from .loop import Loop
from .mounter import Mounter
from .slots import ENDING, HostWork, Slot
from .snapshot_store import MAX_ARCHIVE, RefusedSnapshotError, Snapshot, SnapshotStore

CHUNK = 4 << 20
"""Bytes of an archive that one frame carries."""
_MB = 1 << 20
_log = logging.getLogger("agentenv.sandboxd")

_Resume = Callable[[Any], None]
_Step = Callable[[_Resume], None]
"""Begins something and calls back with its result."""
_Work = Generator[_Step, Any, None]


class _SpoiltError(RefusedSnapshotError):
    """It cannot be done, and the slot is of no use any more."""


class _Job:
    """Something that takes several steps, under way. One that is of a slot ends with it."""

    def __init__(
        self, frame: frames.Frame, snapshot: Snapshot, work: _Work, slot: Optional[Slot]
    ) -> None:
        self.frame = frame
        self.snapshot = snapshot
        self.work = work
        self.slot = slot
        self.is_answered = False


class Snapshots:
    """Answers the driver's SNAPSHOT frames. `flush` sends what waits in a slot's outbox, `end` ends a slot."""

    def __init__(
        self,
        driver: DriverStream,
        launcher: Launcher,
        loop: Loop,
        *,
        flush: Callable[[Slot], None],
        end: Callable[[Slot, str], None],
    ) -> None:
        self._driver = driver
        self._disk_bytes = launcher.settings.disk_mb * _MB
        self._loop = loop
        self._overlays = launcher.mounter is not None
        self._flush = flush
        self._end = end
        self._store = SnapshotStore(self._drop_tree, launcher.clones_in)
        self._mounter = launcher.mounter
        """The helper, or the one that has taken its place."""
        if self._mounter is not None:
            self._mounter.serve(loop, self._store.lose_trees)
        self._jobs: Set[_Job] = set()
        self._layered: Set[Slot] = set()
        """Slots whose workspace is an overlay: what they hold is no file system of its own."""
        self._growing: Dict[Snapshot, List[_Resume]] = {}
        """Archives that are about to become trees, and who had better wait for that."""
        self._trees = 0

    @property
    def are_busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._jobs)

    # --- what the driver asks -------------------------------------------------------------------------------------

    def take_frame(self, frame: frames.Frame, slot: Optional[Slot]) -> None:
        """Do what a SNAPSHOT frame asks; `slot` is that of its channel."""
        values = json.loads(frame.header)
        name, do = values["snapshot"], values["do"]
        try:
            if do == "take":
                self._take_later(frame, slot, name)
            elif do == "restore":
                self._in_slot(frame, slot, self._store.find(name), self._restore)
            elif do == "fetch":
                snapshot = self._store.find(name)
                work = self._fetch(frame, snapshot, int(values["offset"]))
                self._go_on(self._add(_Job(frame, snapshot, work, None)), None)
            elif do == "put":
                last = bool(values["last"])
                self._store.put(name, frame.body, int(values["offset"]), last=last)
                self._driver.reply(frame)
            else:
                self._store.drop(name)
                self._driver.reply(frame)
        except RefusedSnapshotError as error:
            self._driver.fail(frame.channel, frame.request_id, str(error))

    def slot_ended(self, slot: Slot) -> None:
        """A slot is no more: nor is what was being done with it."""
        self._layered.discard(slot)
        for job in [job for job in self._jobs if job.slot is slot]:
            job.work.close()
            self._let_go(job)

    def close(self) -> None:
        """Let go of everything."""
        self._store.drop_all()
        if self._mounter is not None:
            self._mounter.close()

    # --- jobs -----------------------------------------------------------------------------------------------------

    def _take_later(self, frame: frames.Frame, slot: Optional[Slot], name: str) -> None:
        snapshot = self._store.new(name)
        try:
            self._in_slot(frame, slot, snapshot, self._take)
        except RefusedSnapshotError:
            self._store.drop(name)
            raise

    def _in_slot(
        self,
        frame: frames.Frame,
        slot: Optional[Slot],
        snapshot: Snapshot,
        work: Callable[[Slot, Snapshot], _Work],
    ) -> None:
        """Do it when the slot's earlier requests are done."""
        if slot is None or slot.state == ENDING:
            raise RefusedSnapshotError("there is no such slot")
        job = self._add(_Job(frame, snapshot, work(slot, snapshot), slot))
        if not slot.submit(HostWork(frame.request_id, partial(self._go_on, job, None))):
            self._let_go(job)
            raise RefusedSnapshotError("too many requests wait for this slot")
        self._flush(slot)

    def _add(self, job: _Job) -> _Job:
        self._jobs.add(job)
        job.snapshot.users += 1
        return job

    def _let_go(self, job: _Job) -> None:
        self._jobs.discard(job)
        self._store.release(job.snapshot)

    def _go_on(self, job: _Job, result: Any) -> None:
        if job not in self._jobs:
            return  # its slot is gone
        try:
            begin = job.work.send(result)
        except StopIteration:
            self._finish(job, None)
        except RefusedSnapshotError as error:
            self._finish(job, error)
        except OSError as error:  # no descriptor or no memory is left: who asked may ask again
            self._finish(job, RefusedSnapshotError(str(error)))
        else:
            if begin is _answer:
                self._answer(job)
            begin(partial(self._go_on, job))
            if job.slot is not None:
                self._flush(job.slot)

    def _finish(self, job: _Job, error: Optional[RefusedSnapshotError]) -> None:
        self._let_go(job)
        if error is None:
            self._answer(job)
        elif not job.is_answered:
            self._driver.fail(job.frame.channel, job.frame.request_id, str(error))
        if job.slot is None or job.slot.state == ENDING:
            return
        if isinstance(error, _SpoiltError):
            self._end(job.slot, str(error))
        else:
            job.slot.finish_work()
            self._flush(job.slot)

    def _answer(self, job: _Job) -> None:
        """Say that it is done; what carries answers by itself."""
        if job.slot is not None and not job.is_answered:
            self._driver.reply(job.frame)
        job.is_answered = True

    # --- taking ---------------------------------------------------------------------------------------------------

    def _take(self, slot: Slot, snapshot: Snapshot) -> _Work:
        slot.was_used = True
        yield from _ask_init(slot, {"op": "kill"})
        if (yield from self._freeze(slot, snapshot)):
            snapshot.is_whole = True
            yield _answer  # who waits for the snapshot need not wait for its slot
            yield from self._reopen(slot)
        else:
            archive = self._store.new_file()
            try:
                header = {"op": "pack", "max": min(MAX_ARCHIVE, self._store.room)}
                yield from _ask_init(slot, header, archive)
            except BaseException:
                os.close(archive)
                raise
            snapshot.keep_archive(archive)
            _allow_memory(slot, snapshot.archive_bytes)
            snapshot.is_whole = True

    def _freeze(self, slot: Slot, snapshot: Snapshot) -> Generator[_Step, Any, bool]:
        """Make the slot's file system the snapshot's tree, and `_reopen` is next; False where that cannot be."""
        if not self._overlays or slot in self._layered:
            return False
        self._trees += 1
        tree = "tree-%d" % self._trees
        room = self._store.room + snapshot.archive_bytes
        snapshot.tree = tree
        try:
            answer = yield self._mounting("freeze", tree, max_bytes=room, **self._place(slot))
        except GeneratorExit:
            self._store.drop_tree(snapshot)  # the helper makes it all the same
            raise
        if answer.get("error"):
            _log.warning("a slot cannot be frozen; it is copied: %s", answer["error"])
            snapshot.tree = ""
            return False
        snapshot.tree_bytes = answer["value"]
        _allow_memory(slot, snapshot.tree_bytes)
        return True

    def _reopen(self, slot: Slot) -> _Work:
        """Something was mounted over the slot's workspace."""
        self._layered.add(slot)
        try:
            yield from _ask_init(slot, {"op": "reopen"})
        except RefusedSnapshotError as error:
            raise _SpoiltError(str(error)) from error

    # --- restoring ------------------------------------------------------------------------------------------------

    def _restore(self, slot: Slot, snapshot: Snapshot) -> _Work:
        if slot.was_used:
            raise RefusedSnapshotError("slot %s was used already" % slot.slot_id)
        slot.was_used = True
        while snapshot in self._growing:
            yield self._growing[snapshot].append
        if snapshot.tree and (yield from self._mount(slot, snapshot)):
            return
        if snapshot.archive < 0:
            yield from self._pack_tree(snapshot)
        if snapshot.tree or not self._overlays:
            yield from self._unpack(slot, snapshot)
        else:
            yield from self._grow(slot, snapshot)

    def _mount(self, slot: Slot, snapshot: Snapshot) -> Generator[_Step, Any, bool]:
        answer = yield self._mounting("restore", snapshot.tree, **self._place(slot))
        if answer.get("error"):
            _log.warning("a snapshot cannot be mounted; it is copied: %s", answer["error"])
            return False
        yield from self._reopen(slot)
        return True

    def _grow(self, slot: Slot, snapshot: Snapshot) -> _Work:
        """Unpack the archive, and make what it becomes the snapshot's tree."""
        self._growing[snapshot] = []
        try:
            yield from self._unpack(slot, snapshot)
            if (yield from self._freeze(slot, snapshot)):
                yield from self._reopen(slot)
                snapshot.let_go_of_archive()
        finally:
            for resume in self._growing.pop(snapshot):
                resume(None)

    def _unpack(self, slot: Slot, snapshot: Snapshot) -> _Work:
        source = os.open("/proc/self/fd/%d" % snapshot.archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield from _ask_init(slot, {"op": "unpack"}, source)
        except RefusedSnapshotError as error:
            raise _SpoiltError(str(error)) from error
        finally:
            os.close(source)

    # --- carrying -------------------------------------------------------------------------------------------------

    def _fetch(self, frame: frames.Frame, snapshot: Snapshot, offset: int) -> _Work:
        if snapshot.archive < 0:
            yield from self._pack_tree(snapshot)
        size = snapshot.archive_bytes
        body = os.pread(snapshot.archive, CHUNK, offset)
        header = json.dumps({"size": size}).encode("ascii")
        self._driver.put(
            frames.encode(frames.REPLY, request_id=frame.request_id, header=header, body=body)
        )
        if snapshot.tree and offset + len(body) >= size:
            snapshot.let_go_of_archive()

    def _pack_tree(self, snapshot: Snapshot) -> _Work:
        if not snapshot.tree:
            raise RefusedSnapshotError("the snapshot is lost: the helper for mounts died")
        archive = self._store.new_file()
        try:
            most = min(MAX_ARCHIVE, self._store.room)
            answer = yield self._mounting("pack", snapshot.tree, archive, max_bytes=most)
            if answer.get("error"):
                raise RefusedSnapshotError("the snapshot cannot be packed: %s" % answer["error"])
        except BaseException:
            os.close(archive)
            raise
        snapshot.keep_archive(archive)

    # --- the helper -----------------------------------------------------------------------------------------------

    def _mounting(self, do: str, tree: str, descriptor: int = -1, **values: Any) -> _Step:
        """Have the helper do something with a tree."""

        def begin(resume: _Resume) -> None:
            try:
                mounter = self._live_mounter()
            except OSError as error:
                resume({"error": "the helper for mounts cannot be started: %s" % error})
            else:
                mounter.ask(resume, descriptor, do=do, tree=tree, **values)

        return begin

    def _place(self, slot: Slot) -> Dict[str, Any]:
        """Where the helper finds a slot, and how large its own part may grow."""
        process = slot.process
        return {"pid": process.init_pid, "uid": process.parts.uid, "disk_bytes": self._disk_bytes}

    def _live_mounter(self) -> Mounter:
        if self._mounter is None or self._mounter.error:
            self._mounter = Mounter()
            self._mounter.serve(self._loop, self._store.lose_trees)
        return self._mounter

    def _drop_tree(self, tree: str) -> None:
        if self._mounter is not None:
            self._mounter.ask(_log_error, do="drop", tree=tree)


def _answer(resume: _Resume) -> None:
    """A step: the driver is told that the job is done, which goes on."""
    resume(None)


def _ask_init(
    slot: Slot, header: Dict[str, Any], descriptor: int = -1
) -> Generator[_Step, Any, None]:
    def begin(resume: _Resume) -> None:
        slot.ask(header, resume, descriptor)

    frame = yield begin
    try:
        answer = json.loads(frame.header)
        failure = "%s: %s" % (header["op"], answer["message"]) if "failure" in answer else ""
    except (ValueError, TypeError, KeyError) as error:
        raise _SpoiltError("%s: its answer makes no sense: %r" % (header["op"], error)) from error
    if failure:
        raise RefusedSnapshotError(failure)


def _allow_memory(slot: Slot, size: int) -> None:
    """What a snapshot of the slot's takes stays on its account, and is no use of the slot's own."""
    if slot.process.parts.group is not None:
        try:
            slot.process.parts.group.allow_more_memory(size)
        except OSError as error:
            _log.warning("slot %s may have less memory now: %s", slot.slot_id, error)


def _log_error(answer: Dict[str, Any]) -> None:
    if answer.get("error"):
        _log.info("a snapshot was not dropped: %s", answer["error"])
