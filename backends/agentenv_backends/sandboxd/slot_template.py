"""A process that has done what the starts of all slots have in common, and begins each of them by a fork.

To start an interpreter and to import takes a slot ten times as long as to be a copy of one that has. The template was
started as a slot's init is: the same program, limits and (no) variables. It holds nothing of the host's but the stream
to it, and never reads a byte of a slot's: what its copies know is what new programs would have found out.

The parent of a copy ends at once. So a slot's init is a child of the host, a subreaper, like one that the host began.
"""

from __future__ import annotations

import errno
import gc
import os
import sys

from . import slot_init, trees  # noqa: F401 - imported once, for all that are to come
from .lean import PR_SET_DUMPABLE, join_groups, json_dumps, json_loads, prctl
from .template_order import DESCRIPTORS, MAX_ORDER, NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, NoReturn, Sequence

_MSG_CMSG_CLOEXEC = 0x40000000


def main() -> None:
    """Begin slots until the host is gone; the stream to it is the descriptor named by the first argument.

    An order is a list of the files by which the slot joins its control groups.
    """
    import _socket  # noqa: PLC0415 - an init needs it only for a snapshot

    host = _socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(host.fileno(), False)
    json_dumps([])  # has `json` imported
    _call_this_process(b"slot-template")
    prctl(PR_SET_DUMPABLE, 0)
    gc.freeze()
    space = _socket.CMSG_SPACE(DESCRIPTORS.size)
    while True:
        order, rights, _, _ = host.recvmsg(MAX_ORDER, space, _MSG_CMSG_CLOEXEC)
        if not order:
            return
        slot = DESCRIPTORS.unpack(rights[0][2])
        pid = _begin(slot, json_loads(order.decode("ascii")), host.fileno())
        for descriptor in slot:
            os.close(descriptor)
        host.send(NUMBER.pack(pid))


def _begin(slot: Sequence[int], groups: List[str], host: int) -> int:
    reading, writing = os.pipe()
    try:
        try:
            between = os.fork()
            if between == 0:
                _leave_init(slot, groups, (host, reading), writing)
        finally:
            os.close(writing)  # else one that is killed would be awaited for ever
        number = os.read(reading, NUMBER.size) or NUMBER.pack(-errno.EAGAIN)
        os.waitpid(between, 0)
        return int(NUMBER.unpack(number)[0])
    except OSError as error:
        return -(error.errno or errno.EAGAIN)
    finally:
        os.close(reading)


def _leave_init(
    slot: Sequence[int], groups: List[str], to_close: Sequence[int], writing: int
) -> NoReturn:
    """Fork the init, say which process it is, and end: it falls to the host."""
    try:
        try:
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or errno.EAGAIN)
        if pid == 0:
            _become_init(slot, groups, (*to_close, writing))
        os.write(writing, NUMBER.pack(pid))
    finally:
        os._exit(0)


def _become_init(slot: Sequence[int], groups: List[str], to_close: Sequence[int]) -> NoReturn:
    status = 1
    try:
        stream, errors = slot
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        os.set_blocking(2, True)
        for descriptor in (errors, *to_close):
            os.close(descriptor)
        join_groups(groups)
        # As a new program is, which has files in /proc to open first: its init takes this back.
        prctl(PR_SET_DUMPABLE, 1)
        _call_this_process(b"slot-init")
        slot_init.run(stream)
        status = 0
    except BaseException:  # noqa: BLE001 - the child of a fork has nobody to raise to
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _call_this_process(name: bytes) -> None:
    """Copies share their command line: by this those who look at processes tell them apart."""
    descriptor = os.open("/proc/self/comm", os.O_WRONLY)
    try:
        os.write(descriptor, name)
    finally:
        os.close(descriptor)
