"""The system call filter of a slot: a classic BPF program, assembled here so that nothing has to be installed.

Denied calls fail with EPERM, as they do for a user without privileges; `clone3` fails with ENOSYS, so that C libraries
fall back to `clone`, whose flags a filter can see. Calls of a foreign architecture end the process.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from typing import Dict, List, NamedTuple, Optional, Tuple

# name: (x86_64, aarch64); None where the architecture lacks it
DENIED: Dict[str, Tuple[Optional[int], Optional[int]]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}

# name: ((x86_64, aarch64), the value of the first argument by which the second names one process; None: the first does)
PRIORITY_CALLS: Dict[str, Tuple[Tuple[int, int], Optional[int]]] = {
    "setpriority": ((141, 140), 0),
    "ioprio_set": ((251, 30), 1),
    "sched_setparam": ((142, 118), None),
    "sched_setscheduler": ((144, 119), None),
    "sched_setaffinity": ((203, 122), None),
    "sched_setattr": ((314, 274), None),
}
"""Calls that can slow another process of the same user down, such as the slot's init."""

_SOCKET = (41, 198)
_AF_UNIX = 1

_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_X32_BIT = 0x40000000
_CLONE3 = 435
_ALLOW = 0x7FFF0000
_DENY = 0x00050000 | errno.EPERM
_ABSENT = 0x00050000 | errno.ENOSYS
_KILL = 0x80000000

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16
_INSTRUCTION_SIZE = 8
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


class _Architecture(NamedTuple):
    audit: int
    column: int
    ioctl: int
    clone: int
    prlimit64: int


_ARCHITECTURES = {
    "x86_64": _Architecture(audit=0xC000003E, column=0, ioctl=16, clone=56, prlimit64=302),
    "aarch64": _Architecture(audit=0xC00000B7, column=1, ioctl=29, clone=220, prlimit64=261),
}


class UnsupportedMachineError(Exception):
    """No filter is known for this machine's architecture."""


def filter_program(machine: str = "", *, init: int = 1, sockets: bool = True) -> bytes:
    """The filter as an array of `struct sock_filter`, for the given machine or this one.

    `init` is the slot's first process as its commands see it: they must not slow it down, or it would miss deadlines
    that are theirs. Without `sockets` they get none but Unix ones. Raises `UnsupportedMachineError`.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise UnsupportedMachineError(
            "no system call filter for %r; known are %s" % (machine, known)
        )
    architecture = _ARCHITECTURES[machine]
    program = _Program()
    program.load(_ARCH_OFFSET)
    program.when(_JUMP_EQUAL, architecture.audit, otherwise=_KILL)
    program.load(_NR_OFFSET)
    if machine == "x86_64":
        program.refuse_when(_JUMP_AT_LEAST, _X32_BIT, _KILL)
    for numbers in DENIED.values():
        number = numbers[architecture.column]
        if number is not None:
            program.refuse_when(_JUMP_EQUAL, number, _DENY)
    program.refuse_when(_JUMP_EQUAL, _CLONE3, _ABSENT)
    program.refuse_argument(architecture.clone, 0, [(_JUMP_ANY_BIT, _NEW_NAMESPACE)])
    # The kernel compares 32 bits of an ioctl's number; so must the filter, or high bits walk past it.
    program.refuse_argument(
        architecture.ioctl, 1, [(_JUMP_EQUAL, _TIOCSTI), (_JUMP_EQUAL, _TIOCLINUX)]
    )
    # Limits of another process (the slot's init) are nobody's to change.
    program.refuse_argument(architecture.prlimit64, 0, [], unless=(_JUMP_EQUAL, 0))
    if not sockets:
        number = _SOCKET[architecture.column]
        program.refuse_argument(number, 0, [], unless=(_JUMP_EQUAL, _AF_UNIX))
    for numbers_of, kind in PRIORITY_CALLS.values():
        target = [(_JUMP_EQUAL, init)]
        number = numbers_of[architecture.column]
        if kind is None:
            program.refuse_argument(number, 0, target)
        else:
            program.refuse_arguments(number, kind, target)
    program.finish(_ALLOW)
    return program.assemble()


class _Program:
    """Instructions in order. Every test falls through when it does not apply."""

    def __init__(self) -> None:
        self._code: List[Tuple[int, int, int, int]] = []

    def load(self, offset: int) -> None:
        self._code.append((_LOAD, 0, 0, offset))

    def finish(self, action: int) -> None:
        self._code.append((_RETURN, 0, 0, action))

    def when(self, test: int, value: int, *, otherwise: int) -> None:
        """Go on when the test holds."""
        self._code += [(test, 1, 0, value), (_RETURN, 0, 0, otherwise)]

    def refuse_when(self, test: int, value: int, action: int) -> None:
        """End with `action` when the test holds."""
        self._code += [(test, 0, 1, value), (_RETURN, 0, 0, action)]

    def refuse_argument(
        self,
        number: int,
        argument: int,
        tests: List[Tuple[int, int]],
        *,
        unless: Optional[Tuple[int, int]] = None,
    ) -> None:
        """For one call, look at the low half of an argument; the call is allowed when nothing refuses it."""
        block = _Program()
        block.load(_ARGS_OFFSET + 8 * argument)
        for test, value in tests:
            block.refuse_when(test, value, _DENY)
        if unless is not None:
            block.when(*unless, otherwise=_DENY)
        self._add_block(number, block)

    def refuse_arguments(self, number: int, kind: int, targets: List[Tuple[int, int]]) -> None:
        """For one call, allow only this kind of target as the first argument, and none of `targets` as the second."""
        block = _Program()
        block.load(_ARGS_OFFSET)
        block.when(_JUMP_EQUAL, kind, otherwise=_DENY)
        block.load(_ARGS_OFFSET + 8)
        for test, value in targets:
            block.refuse_when(test, value, _DENY)
        self._add_block(number, block)

    def _add_block(self, number: int, block: _Program) -> None:
        block.finish(_ALLOW)
        self._code.append((_JUMP_EQUAL, 0, len(block._code), number))
        self._code += block._code

    def assemble(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in self._code)


def install(program: bytes) -> None:
    """Put this process, and all that it starts, under a filter for good; it gains no privileges from then on either.

    For slots that nobody else puts under one. Raises `OSError`.
    """
    import ctypes  # noqa: PLC0415 - a host of bubblewrap's slots never needs it

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    code = ctypes.create_string_buffer(program, len(program))
    whole = Program(len(program) // _INSTRUCTION_SIZE, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value, argument in (
        (_PR_SET_NO_NEW_PRIVS, 1, None),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(whole)),
    ):
        if libc.prctl(option, value, argument, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, "prctl(%d): %s" % (option, os.strerror(number)))
