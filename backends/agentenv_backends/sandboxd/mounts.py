"""The process that holds snapshots as mounts, and puts them before slots: the server's one privileged helper.

It lives in a mount namespace of its own, so nothing that it mounts shows anywhere else, and all of it is gone with the
process, however that ends. A snapshot is the file system of the slot that it was taken of, frozen. A slot is given an
overlay: the snapshot below, its files shown as the slot's own by an id-mapped mount, and a sized memory file system of
the slot's above, which takes what is written. Hard links stay links when they are written to (`index=on`).

What lies in a snapshot was made by strangers. It is only ever walked by `slot_snapshot.pack`, in a child without
rights to write anything.
"""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import struct
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NoReturn, Tuple

from . import mount_calls
from .bwrap import WORKSPACE
from .forked import become_helper, die_with_parent
from .lean import prctl
from .refusal import RefusedError
from .slot_snapshot import pack

_HOME = "/tmp"  # noqa: S108 - covered by a file system of its own, in this namespace alone
_MESSAGE = 1 << 14
_QUIET_MS = 200
"""After so long without a request there is time to tidy up: the members of a group come one after the other."""
_MOST_NEEDLESS = 200
_PREPARED = 8
"""Memory file systems that stand ready for overlays, as many as a group commonly has members."""
_PR_SET_KEEPCAPS = 8
_CAP_DAC_READ_SEARCH = 2
_NOBODY = 65534
_OVERLAY = {"index": "on", "metacopy": "off", "redirect_dir": "off", "xino": "off"}
_FULL_SIZE = "%d bytes are in the workspace; there is room for %d more in the host's snapshots"


class Mounts:
    """The mounts. Every method raises `OSError`, having changed nothing, when the kernel refuses."""

    def __init__(self) -> None:
        self._own = mount_calls.private_namespace()
        with _closing(mount_calls.new_file_system("tmpfs", {"size": "1m", "mode": "700"})) as home:
            mount_calls.attach(home, _HOME)
        self._counter = 0
        self._needless: List[str] = []
        """Mounts for one step only, which is over: taking them away makes the kernel wait, and nobody else has to."""
        self._prepared: List[str] = []
        """Where memory file systems for overlays lie that nobody has used yet; each holds `_prepared_bytes`."""
        self._prepared_bytes = 0

    def trial(self, pid: int, uid: int, disk_bytes: int) -> None:
        """Try on a slot that is to be thrown away whether all this really works here. Raises `OSError` if not."""
        lower = self._folder("trial")
        # The owner of a slot's files is 0 in the user namespace that bubblewrap mounts them in: all here is 0's.
        small = {"size": "64k", "mode": "755"}
        with _closing(mount_calls.new_file_system("tmpfs", small)) as mount:
            mount_calls.attach(mount, lower)
        try:
            first, second = os.path.join(lower, "a"), os.path.join(lower, "b")
            with open(first, "wb"):
                pass
            os.link(first, second)
            with _slot(pid, uid) as (namespace, users):
                with self._mapped(lower, users) as mapped:
                    self._cover(namespace, self._overlay(mapped, uid, disk_bytes))
                with self._inside(namespace):
                    _check_overlay(uid)
        finally:
            _remove_mount(lower)

    def freeze(self, tree: str, pid: int, uid: int, disk_bytes: int, max_bytes: int) -> int:
        """Make what the slot's workspace holds the snapshot `tree`, and let the slot go on above it; its bytes.

        No process of the slot's may run meanwhile but its init, which must reopen its workspace afterwards.
        """
        with _slot(pid, uid) as (namespace, _):
            with self._inside(namespace):
                usage = os.statvfs(WORKSPACE)
                used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
                if used > max_bytes:
                    raise OSError(_FULL_SIZE % (used, max_bytes))
                frozen = mount_calls.clone_mount(WORKSPACE)
            path = self._folder(tree)
            try:
                with _closing(frozen):
                    mount_calls.make_read_only(frozen)
                    mount_calls.attach(frozen, path)
                self._cover(namespace, self._overlay(path, uid, disk_bytes))
            except OSError:
                _remove_mount(path)
                raise
        return used

    def restore(self, tree: str, pid: int, uid: int, disk_bytes: int) -> None:
        """Put the snapshot before a slot, which must reopen its workspace afterwards."""
        with _slot(pid, uid) as (namespace, users):
            with self._mapped(self.path(tree), users) as lower:
                overlay = self._overlay(lower, uid, disk_bytes)
            self._cover(namespace, overlay)

    def drop(self, tree: str) -> None:
        """Let go of a snapshot; slots that were given it keep it."""
        _remove_mount(self.path(tree))

    @property
    def is_untidy(self) -> bool:
        """Whether so much is to be taken away that no quiet moment is to be waited for."""
        return len(self._needless) > _MOST_NEEDLESS

    @property
    def has_chores(self) -> bool:
        """Whether there is something for `tidy` and `prepare` to do."""
        return bool(self._needless) or self._lacks_prepared()

    def prepare(self) -> None:
        """Have ready what the steps to come need; call when there is time."""
        try:
            while self._lacks_prepared():
                self._prepared.append(self._memory(self._prepared_bytes))
        except OSError:
            self._prepared_bytes = 0  # each step makes its own then, and says why it cannot

    def _lacks_prepared(self) -> bool:
        return bool(self._prepared_bytes) and len(self._prepared) < _PREPARED

    def tidy(self) -> None:
        """Take away what the steps before needed for themselves; call when there is time."""
        while self._needless:
            try:
                _remove_mount(self._needless.pop())
            except OSError:
                continue  # it goes with this process

    def path(self, tree: str) -> str:
        """Where the snapshot lies, here."""
        return os.path.join(_HOME, tree)

    def _folder(self, name: str) -> str:
        path = os.path.join(_HOME, name)
        os.mkdir(path, 0o700)
        return path

    def _scratch(self) -> str:
        self._counter += 1
        return self._folder("scratch-%d" % self._counter)

    @contextmanager
    def _mapped(self, path: str, users: int) -> Iterator[str]:
        """The same files, owned by whom the user namespace maps their owners to."""
        scratch = self._scratch()
        try:
            with _closing(mount_calls.clone_mount(path)) as mount:
                mount_calls.map_ids(mount, users)
                mount_calls.attach(mount, scratch)
            yield scratch
        finally:
            self._needless.append(scratch)

    def _overlay(self, lower: str, uid: int, disk_bytes: int) -> int:
        """A new overlay over `lower`, attached nowhere: what is written goes to memory of its own."""
        ready = self._prepared and disk_bytes == self._prepared_bytes
        scratch = self._prepared.pop() if ready else self._memory(disk_bytes)
        self._prepared_bytes = disk_bytes
        try:
            upper, work = os.path.join(scratch, "upper"), os.path.join(scratch, "work")
            _make_alike(lower, upper, uid)
            layers = {"lowerdir": lower, "upperdir": upper, "workdir": work}
            return mount_calls.new_file_system("overlay", dict(layers, **_OVERLAY))
        finally:
            self._needless.append(scratch)

    def _memory(self, size: int) -> str:
        """Where a new memory file system lies, with the two folders that an overlay needs."""
        scratch = self._scratch()
        try:
            sized = {"size": str(size), "mode": "700"}
            with _closing(mount_calls.new_file_system("tmpfs", sized)) as memory:
                mount_calls.attach(memory, scratch)
            os.mkdir(os.path.join(scratch, "upper"))
            os.mkdir(os.path.join(scratch, "work"))
        except OSError:
            self._needless.append(scratch)
            raise
        return scratch

    def _cover(self, namespace: int, mount: int) -> None:
        """Mount over the workspace of a slot."""
        with _closing(mount), self._inside(namespace):
            mount_calls.attach(mount, WORKSPACE)

    @contextmanager
    def _inside(self, namespace: int) -> Iterator[None]:
        """Be in a slot's mount namespace for a moment."""
        mount_calls.enter(namespace)
        try:
            yield
        finally:
            try:
                mount_calls.enter(self._own)
            except OSError:
                os._exit(1)  # nothing may be done where nobody knows where that is


@contextmanager
def _slot(pid: int, uid: int) -> Iterator[Tuple[int, int]]:
    """Descriptors of a slot's mount namespace and of the user namespace that this belongs to.

    A process id may have become another process's: only what the slot's own uid has made is a slot.
    """
    with _closing(os.open("/proc/%d/ns/mnt" % pid, os.O_RDONLY | os.O_CLOEXEC)) as namespace:
        with _closing(mount_calls.user_namespace_of(namespace)) as users:
            if not uid or mount_calls.owner_of(users) != uid:
                raise OSError("process %d is not in a slot of uid %d" % (pid, uid))
            yield namespace, users


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_mount(path: str) -> None:
    """Undo `attach`, if it came to that, and `mkdir`."""
    try:
        mount_calls.detach(path)
    except OSError:
        os.rmdir(path)  # not mounted; and never more than an empty folder
        return
    os.rmdir(path)


def _make_alike(lower: str, upper: str, uid: int) -> None:
    """The root of an overlay is that of its upper layer."""
    info = os.stat(lower)
    os.chown(upper, uid, uid)
    os.chmod(upper, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(lower):
        if name.startswith("user."):
            os.setxattr(upper, name, os.getxattr(lower, name))
    os.utime(upper, ns=(info.st_mtime_ns, info.st_mtime_ns))


def _check_overlay(uid: int) -> None:
    """The trial's files belong to the slot, and are one file still after one of their names was written to."""
    first, second = os.path.join(WORKSPACE, "a"), os.path.join(WORKSPACE, "b")
    with open(first, "ab") as file:
        file.write(b"written")
    owner, size = os.stat(first).st_uid, os.stat(second).st_size
    if owner != uid or size != len(b"written"):
        raise OSError(
            "an overlay here gives files to uid %d and hard links %d bytes" % (owner, size)
        )


# --- The process ----------------------------------------------------------------------------------


class _Helper:
    """Does what it is asked, one message after the other; packing, which takes long, in children."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._mounts = Mounts()
        self._poll = select.poll()
        self._poll.register(stream.fileno(), select.POLLIN)
        self._packing: Dict[int, Tuple[int, int]] = {}
        """The pipes from children, and whose they are: (process id, request id)."""

    def serve(self) -> None:
        """Until the server is gone."""
        while True:
            ready = self._poll.poll(_QUIET_MS if self._mounts.has_chores else None)
            if not ready:
                self._mounts.prepare()
            if not ready or self._mounts.is_untidy:
                self._mounts.tidy()
            for descriptor, _ in ready:
                if descriptor != self._stream.fileno():
                    self._packed(descriptor)
                elif not self._take():
                    return

    def _take(self) -> bool:
        message, extra, _, _ = self._stream.recvmsg(_MESSAGE, socket.CMSG_SPACE(4))
        if not message:
            return False
        descriptors = [struct.unpack("i", content[:4])[0] for _, _, content in extra]
        values = json.loads(message)
        request_id, do = values.pop("id"), values.pop("do")
        try:
            if do == "pack":
                self._pack(request_id, descriptors[0], **values)
            else:
                self._answer(request_id, value=getattr(self._mounts, do)(**values))
        except OSError as error:
            self._answer(request_id, error=str(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _answer(self, request_id: int, **values: Any) -> None:
        self._stream.send(json.dumps(dict(values, id=request_id)).encode("ascii"))

    def _pack(self, request_id: int, target: int, tree: str, max_bytes: int) -> None:
        with _closing(os.open(self._mounts.path(tree), os.O_RDONLY | os.O_DIRECTORY)) as folder:
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                _be_the_packer(folder, target, max_bytes, writing)
            os.close(writing)
        self._packing[reading] = (pid, request_id)
        self._poll.register(reading, select.POLLIN)

    def _packed(self, reading: int) -> None:
        error = os.read(reading, _MESSAGE).decode("utf-8", "replace")
        self._poll.unregister(reading)
        os.close(reading)
        pid, request_id = self._packing.pop(reading)
        _, status = os.waitpid(pid, 0)
        if status and not error:
            error = "packing ended with status %d" % status
        self._answer(request_id, error=error)


def _be_the_packer(folder: int, target: int, max_bytes: int, writing: int) -> NoReturn:
    """In a child: read all, write nothing but the archive."""
    status = 1
    try:
        die_with_parent()
        prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        mount_calls.keep_capability(_CAP_DAC_READ_SEARCH)
        pack(folder, target, max_bytes)
        status = 0
    except (RefusedError, OSError) as error:
        os.write(writing, str(error).encode("utf-8", "replace")[:_MESSAGE])
    finally:
        os._exit(status)


def main(stream: socket.socket, parent: int) -> None:
    """Serve as a fork of the server's. Everything is imported by now: its program may be a descriptor."""
    if become_helper(parent, stream.fileno()):
        _Helper(stream).serve()
