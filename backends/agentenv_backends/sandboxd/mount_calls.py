"""Mount system calls that C libraries may not know yet, by their numbers, which all architectures share.

Whoever imports this has privileges and a mount namespace of its own (`private_namespace`): nothing here is ever done
to the machine's. Every function raises `OSError`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import Dict

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_CLOEXEC = 0o2000000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_SET_STRING, _CREATE = 1, 6
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 1, 2, 4, 0x100000
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_MNT_DETACH = 2
_NS_GET_USERNS, _NS_GET_OWNER_UID = 0xB701, 0xB704
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, "%s: %s" % (what, os.strerror(number)))
    return result


def _number(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def private_namespace() -> int:
    """Take this process to a mount namespace of its own, from which nothing shows elsewhere; its descriptor."""
    _checked("unshare", _libc.unshare(_CLONE_NEWNS))
    flags = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    _checked("mount --make-rprivate /", _libc.mount(b"none", b"/", None, flags, None))
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def enter(namespace: int) -> None:
    """Go to another mount namespace; root and working directory become its root."""
    _checked("setns", _libc.setns(namespace, _CLONE_NEWNS))


def user_namespace_of(namespace: int) -> int:
    """A descriptor of the user namespace that a mount namespace belongs to."""
    return fcntl.ioctl(namespace, _NS_GET_USERNS)


def owner_of(user_namespace: int) -> int:
    """The uid, as seen from here, that made a user namespace."""
    answer = fcntl.ioctl(user_namespace, _NS_GET_OWNER_UID, struct.pack("=I", 0))
    return int(struct.unpack("=I", answer)[0])


def clone_mount(path: str) -> int:
    """A descriptor of a further mount, attached nowhere, of what is mounted at `path`."""
    flags = _OPEN_TREE_CLONE | _CLOEXEC
    result = _libc.syscall(
        _number(_OPEN_TREE), _number(_AT_FDCWD), os.fsencode(path), _number(flags)
    )
    return _checked("open_tree " + path, result)


def attach(mount: int, path: str) -> None:
    """Mount what the descriptor stands for at `path`, over what is there."""
    result = _libc.syscall(
        _number(_MOVE_MOUNT),
        _number(mount),
        b"",
        _number(_AT_FDCWD),
        os.fsencode(path),
        _number(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _checked("move_mount " + path, result)


def detach(path: str) -> None:
    """Unmount `path`; who still uses what was there keeps it."""
    _checked("umount " + path, _libc.umount2(os.fsencode(path), _MNT_DETACH))


def make_read_only(mount: int) -> None:
    """Let nothing be written through that mount."""
    _set_attributes(mount, _ATTR_RDONLY, 0)


def map_ids(mount: int, user_namespace: int) -> None:
    """Show the files of a mount, attached nowhere yet, with the owners that a user namespace maps theirs to."""
    _set_attributes(mount, _ATTR_IDMAP, user_namespace)


def _set_attributes(mount: int, attributes: int, user_namespace: int) -> None:
    wanted = struct.pack("=QQQQ", attributes, 0, 0, user_namespace)
    result = _libc.syscall(
        _number(_MOUNT_SETATTR),
        _number(mount),
        b"",
        _number(_AT_EMPTY_PATH),
        wanted,
        _number(len(wanted)),
    )
    _checked("mount_setattr", result)


def new_file_system(kind: str, options: Dict[str, str]) -> int:
    """A descriptor of a mount, attached nowhere, of a new file system without set-user-id programs and devices."""
    context = _checked(
        "fsopen " + kind,
        _libc.syscall(_number(_FSOPEN), kind.encode("ascii"), _number(_FSOPEN_CLOEXEC)),
    )
    try:
        for name, value in options.items():
            _configure(context, _SET_STRING, name, value)
        _configure(context, _CREATE, "", "")
        attributes = _number(_ATTR_NOSUID | _ATTR_NODEV)
        result = _libc.syscall(
            _number(_FSMOUNT), _number(context), _number(_FSMOUNT_CLOEXEC), attributes
        )
        return _checked("fsmount " + kind, result)
    finally:
        os.close(context)


def _configure(context: int, command: int, name: str, value: str) -> None:
    result = _libc.syscall(
        _number(_FSCONFIG),
        _number(context),
        _number(command),
        name.encode("ascii") if name else None,
        os.fsencode(value) if name else None,
        _number(0),
    )
    _checked("fsconfig %s=%s" % (name or "create", value), result)


def keep_capability(number: int) -> None:
    """Have this one capability and no other. After a change of uid only with PR_SET_KEEPCAPS set before."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    low = 1 << number
    wanted = struct.pack("=6I", low, low, 0, 0, 0, 0)
    _checked("capset", _libc.capset(header, wanted))
