"""A started slot as its host holds it: its outermost process, its stream, and what it was given."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from typing import List, NamedTuple, Optional, Tuple, Union

from . import bwrap, cgroups, host_limits
from .slot_processes import parent_of, signal_quietly
from .users import SlotHome

_CREDENTIALS = struct.Struct("3i")
_DESCRIPTOR = 4
"""Bytes of the number of one."""
_MSG_CMSG_CLOEXEC = 0x40000000


class SlotParts(NamedTuple):
    """What a slot is given, and gives back."""

    uid: Optional[int]
    group: Optional[cgroups.Group]
    folder: str = ""
    """Its folder on this machine, with isolation none."""
    home: Optional[SlotHome] = None
    """Who and where it is, with isolation user."""


def collect(pid: int, patience_s: float) -> None:
    """Wait for a child that is about to end, and kill it when it does not; one that was collected is no error."""
    deadline = time.monotonic() + patience_s
    try:
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                signal_quietly(pid, signal.SIGKILL)
            time.sleep(0.001)
    except ChildProcessError:
        return


class SlotProcess:
    """A started slot: its outermost process and the host's ends of what leads to it."""

    def __init__(self, pid: int, stream: socket.socket, errors: int, parts: SlotParts) -> None:
        self.pid = pid
        """The outermost process; 0 once it has been reaped."""
        self.init_pid = 0
        """The slot's first process as seen from here; 0 until it has spoken."""
        self.stream = stream
        self.errors = errors
        self.parts = parts
        self.memory: Union[cgroups.Group, host_limits.MemoryWatch, None] = parts.group
        """What can tell whether the kernel killed in it for want of memory."""
        self.setup = b""
        """What its init is told first."""

    @property
    def confined(self) -> bool:
        """Whether a pid namespace holds it."""
        return not self.parts.folder and self.parts.home is None

    @property
    def workspace(self) -> str:
        """The workspace as the slot's commands see it."""
        if self.parts.home is not None:
            return self.parts.home.workspace
        return (
            os.path.join(self.parts.folder, "workspace") if self.parts.folder else bwrap.WORKSPACE
        )

    @property
    def tmp(self) -> str:
        """The slot's folder for temporary files, as its commands see it."""
        if self.parts.home is not None:
            return self.parts.home.tmp
        return os.path.join(self.parts.folder, "tmp") if self.parts.folder else "/tmp"  # noqa: S108 - the slot's own

    @property
    def is_root(self) -> bool:
        """Whether its commands are the container's root, who may do to its init what it likes."""
        return self.parts.home is not None and self.parts.home.uid == 0

    def receive_first(self, size: int) -> bytes:
        """What its init says first: the kernel vouches for the sender's process id, as seen from here."""
        data, extra, _, _ = self.stream.recvmsg(size, socket.CMSG_SPACE(_CREDENTIALS.size))
        for level, kind, content in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and data:
                self.init_pid = _CREDENTIALS.unpack(content)[0]
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        return data

    def receive(self, size: int, most: int) -> Tuple[bytes, List[int]]:
        """What its init says next, and up to so many descriptors that it passes along. Raises `OSError`."""
        data, extra, _, _ = self.stream.recvmsg(
            size, socket.CMSG_SPACE(most * _DESCRIPTOR), _MSG_CMSG_CLOEXEC
        )
        passed: List[int] = []
        for _, _, content in extra:
            passed += struct.unpack("%di" % (len(content) // _DESCRIPTOR), content)
        return data, passed

    def error_text(self) -> str:
        """What the slot's own processes complained about; commands cannot write there."""
        try:
            return os.read(self.errors, 1 << 16).decode("utf-8", "replace").strip()[-1000:]
        except BlockingIOError:
            return ""

    def close(self) -> None:
        """Let go of the host's ends."""
        self.stream.close()
        os.close(self.errors)

    def end(self) -> None:
        """Have the slot end; its outermost process follows when everything else is dead.

        The death of its init is the death of all in a pid namespace. Elsewhere, and before it has spoken, the init is
        told by the end of its stream.
        """
        if self.confined and self.init_pid:
            signal_quietly(self.init_pid, signal.SIGKILL)
        else:
            self.hang_up()

    def hang_up(self) -> None:
        """End the stream."""
        try:
            self.stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.kill()

    def left_to_us(self) -> bool:
        """Whether the init has outlived the outermost process, and so become a child of this one."""
        if not self.confined or self.pid or not self.init_pid:
            return False
        return parent_of(str(self.init_pid)) == os.getpid()

    def kill(self) -> None:
        """End a slot that does not end by itself. What it leaves falls to this process, a subreaper."""
        if self.confined and self.pid and not self.init_pid:
            # Bubblewrap that is killed alone just after it has made its child leaves one that waits for it for ever.
            signal_quietly(-self.pid, signal.SIGKILL)
        for pid in (self.init_pid, self.pid):
            if pid:
                signal_quietly(pid, signal.SIGKILL)
