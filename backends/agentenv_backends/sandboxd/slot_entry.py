"""The entry program: the first program of a command where slots are users. It takes on the command's identity and
becomes the shell.

A command has to change its user between its birth and its shell. A forked child can, but to fork an interpreter and to
run Python in the copy takes as long as the shell itself: each page that either side then uses is copied. `posix_spawn`
copies nothing, and cannot change a user. So it begins this program, which does no more than

    fcntl(FAILURES, F_SETFD, FD_CLOEXEC); setresuid(uid, uid, uid); execve(path, argv, envp)

and, when one of the last two fails, writes what the kernel said (8 bytes) to FAILURES. No image has such a program, so
it is put together here, a few instructions in a file in memory.

Until its `setresuid` its real id is the init's. Nobody can make use of that: it runs nothing of the slot's, and no
process of the slot's user can trace or inspect it, as not all of its ids are that user's.

Not everywhere: under no-new-privileges, Linux before 6.16 makes the effective id of such a program its real one, from
which there is no way to the slot's. So it is tried when the slot is opened, and where it says so (EPERM) commands are
begun by forks. A soft limit of the stack above 8 MiB is 8 MiB for what the program becomes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from .lean import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List

FAILURES = 60
"""Descriptor on which the program expects a pipe."""
_ADDRESS = 0x400000
_HEADERS = struct.Struct("<16sHHIQQQIHHHHHH" + "IIQQQQQQ")
_F_ADD_SEALS, _ALL_SEALS, _ALLOW_SEALING = 1033, 0xF, 2
_SET_CLOEXEC = (2, 1)


def open_entry_program(uid: int, path: str) -> int:
    """A descriptor, above `FAILURES`, of the program that becomes `path` as user `uid`.

    Raises `OSError` where there cannot be one, with ENOEXEC on a machine it is not known for.
    """
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(errno.ENOEXEC, "no entry program for " + machine)
    writable = os.memfd_create("entry", os.MFD_CLOEXEC | _ALLOW_SEALING)
    try:
        write_all(writable, entry_program(machine, uid, path))
        fcntl.fcntl(writable, _F_ADD_SEALS, _ALL_SEALS)
        # A program that somebody has open to write to does not begin.
        readable = os.open("/proc/self/fd/%d" % writable, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
    try:
        return fcntl.fcntl(readable, fcntl.F_DUPFD_CLOEXEC, FAILURES + 1)
    finally:
        os.close(readable)


def entry_program(machine: str, uid: int, path: str) -> bytes:
    """The program as an ELF file: headers, code, and the path right after the code."""
    code = _MACHINES[machine](uid) + os.fsencode(path) + b"\0"
    size = _HEADERS.size + len(code)
    elf_header_size, program_header_size = 64, 56
    identity = b"\x7fELF" + bytes((2, 1, 1))  # 64 bits, little-endian
    executable, loaded, read_and_execute, alignment = 2, 1, 5, 1 << 16
    return (
        _HEADERS.pack(
            *(identity, executable, _NUMBERS[machine], 1, _ADDRESS + _HEADERS.size),
            *(elf_header_size, 0, 0, elf_header_size, program_header_size, 1, 0, 0, 0),
            *(loaded, read_and_execute, 0, _ADDRESS, _ADDRESS, size, size, alignment),
        )
        + code
    )


def _x86_64(uid: int) -> bytes:
    def call(number: int, *arguments: int) -> bytes:
        """`mov` to eax, then to edi, esi, edx; then the call."""
        values = (number, *arguments)
        moves = [
            b"%c%b" % (0xB8 + _X86_64_REGISTERS[n], _word(value)) for n, value in enumerate(values)
        ]
        return b"".join(moves) + b"\x0f\x05"

    complain = b"".join(
        (
            b"\x50",  # push rax
            *(b"\x48\x89\xe6", b"\xbf", _word(FAILURES)),  # mov rsi, rsp; mov edi, FAILURES
            *(b"\xba", _word(8), call(1)),  # mov edx, 8; write
            call(231, 127),  # exit_group
        )
    )
    begin = b"".join(
        (
            b"\x48\x8d\x74\x24\x08",  # lea rsi, [rsp+8]: argv
            b"\x48\x8b\x14\x24",  # mov rdx, [rsp]: argc
            b"\x48\x8d\x54\xd6\x08",  # lea rdx, [rsi+rdx*8+8]: envp
            call(59),  # execve
        )
    )
    begin = b"\x48\x8d\x3d" + _word(len(begin) + len(complain)) + begin  # lea rdi, [rip+...]: path
    return b"".join(
        (
            call(72, FAILURES, *_SET_CLOEXEC),  # fcntl
            call(117, uid, uid, uid),  # setresuid
            *(b"\x85\xc0", b"\x75%c" % len(begin)),  # test eax, eax; jnz complain
            *(begin, complain),
        )
    )


_X86_64_REGISTERS = (0, 7, 6, 2)
"""eax, edi, esi, edx."""


def _word(value: int) -> bytes:
    return struct.pack("<I", value)


def _aarch64(uid: int) -> bytes:
    def load(register: int, value: int) -> List[int]:
        """`movz` and `movk`, 16 bits each."""
        low, high = value & 0xFFFF, value >> 16
        return [0xD2800000 | low << 5 | register, 0xF2A00000 | high << 5 | register]

    def call(number: int, *arguments: int) -> List[int]:
        """The arguments to x0 and on, the number to x8; then the call."""
        words = [word for n, value in enumerate(arguments) for word in load(n, value)]
        return [*words, *load(8, number), 0xD4000001]  # svc 0

    complain = [
        0xF81F0FE0,  # str x0, [sp, #-16]!
        *load(0, FAILURES),
        0x910003E1,  # mov x1, sp
        *load(2, 8),
        *call(64),  # write
        *call(94, 127),  # exit_group
    ]
    begin = [
        0x910023E1,  # add x1, sp, #8: argv
        0xF94003E2,  # ldr x2, [sp]: argc
        0x8B020C22,  # add x2, x1, x2, lsl #3
        0x91002042,  # add x2, x2, #8: envp
        *call(221),  # execve
    ]
    begin = [0x10000000 | (1 + len(begin) + len(complain)) << 5, *begin]  # adr x0, path
    words = [
        *call(25, FAILURES, *_SET_CLOEXEC),  # fcntl
        *call(147, uid, uid, uid),  # setresuid
        0xB5000000 | (1 + len(begin)) << 5,  # cbnz x0, complain
        *begin,
        *complain,
    ]
    return struct.pack("<%dI" % len(words), *words)


_MACHINES: Dict[str, Callable[[int], bytes]] = {"x86_64": _x86_64, "aarch64": _aarch64}
_NUMBERS = {"x86_64": 62, "aarch64": 183}
