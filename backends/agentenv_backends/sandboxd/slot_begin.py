"""Beginning a command of another user without a copy of the init, and without a program in between.

`posix_spawn` cannot change a user, so a command of a user begins through an entry program (`slot_entry.py`): a second
`execve`, a tenth of a shell's start. Here the child changes its user before it becomes the shell. As in `posix_spawn`
it shares the init's memory, and the init stands still until the child has a program of its own. Nothing of Python runs
in it but a few instructions put together here, on a stack of their own:

    setsid(); rt_sigprocmask(SIG_SETMASK, none); dup2(...) each; setresuid(uid, uid, uid); execve(path, argv, envp)

and, when one of these fails, what the kernel said (8 bytes) is written to a pipe.

Only while no process of the slot's user is alive: between its `setresuid` and its shell the child can be signalled by
them, and one that is stopped there would stop the init too. Nobody can trace it or look into it: the memory it shares
cannot be inspected, as the init's.

What is out of the ordinary (long commands, unusual descriptors, other machines) is left to the entry program.
"""

from __future__ import annotations

import errno
import os
import struct

from .lean import SIGCHLD, c_function, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Sequence, Tuple, Union

_BASE = 0x50000000
"""Where all of it lies: an address that fits an `int`, as which calls of the C library get and give it."""
_REQUEST_SIZE = _ENVIRONMENT_SIZE = _STACK_SIZE = 1 << 16
_ENVIRONMENT = _BASE + _REQUEST_SIZE
_STACK_END = _ENVIRONMENT + _ENVIRONMENT_SIZE + _STACK_SIZE
_CODE, _CODE_SIZE = _STACK_END, 1 << 16
_MOST_DUPS, _HIGHEST = 4, 3
"""How many descriptors a program is given, and up to which number."""
_HEAD = struct.Struct("=%dQ" % (5 + 2 * _MOST_DUPS))
"""Addresses of path, argv and envp, no blocked signal, the number of dups; source and target of each."""
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_FIXED_NOREPLACE = 0x2, 0x20, 0x100000
_CLONE_VM, _CLONE_VFORK = 0x100, 0x4000


class Beginner:
    """Begins programs as user `uid`; one that does not become a program writes to the descriptor `failures`.

    Raises `OSError` where there cannot be one, with ENOEXEC on a machine it is not known for.
    """

    def __init__(self, uid: int, failures: int) -> None:
        machine = os.uname().machine
        if machine != "x86_64":
            raise OSError(errno.ENOEXEC, "commands cannot begin that way on " + machine)
        self._clone, self._copy = c_function("clone"), c_function("memcpy")
        self._env: Dict[str, str] = {}
        _map_memory()
        _map_code(beginning(uid, failures))

    def begin(
        self,
        path: str,
        arguments: Sequence[Union[str, bytes]],
        env: Dict[str, str],
        actions: Sequence[Tuple[Any, ...]],
    ) -> int:
        """The process id of what becomes the program at `path`; 0 where it has to begin in another way.

        `actions` are those of `os.posix_spawn`. Raises `OSError` when the system lets no process begin.
        """
        request = self._request(path, arguments, actions)
        if not request or not self._write_environment(env):
            return 0
        self._copy(_BASE, request, len(request))
        pid = self._clone(_CODE, _STACK_END, _CLONE_VM | _CLONE_VFORK | SIGCHLD, _BASE)
        if pid < 0:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return pid

    def _request(
        self, path: str, arguments: Sequence[Union[str, bytes]], actions: Sequence[Tuple[Any, ...]]
    ) -> bytes:
        dups: List[int] = []
        for kind, *values in actions:
            if kind != os.POSIX_SPAWN_DUP2 or values[0] <= _HIGHEST or values[1] > _HIGHEST:
                return b""  # one might be given away before it is given
            dups += values
        count = len(dups) // 2
        if count > _MOST_DUPS:
            return b""
        texts = [os.fsencode(text) for text in arguments]
        block = _block(texts, _BASE + _HEAD.size)
        path_at = _BASE + _HEAD.size + len(block)
        dups += [0] * (2 * _MOST_DUPS - len(dups))
        head = _HEAD.pack(path_at, _BASE + _HEAD.size, _ENVIRONMENT, 0, count, *dups)
        whole = b"".join((head, block, os.fsencode(path), b"\0"))
        return whole if block and len(whole) <= _REQUEST_SIZE else b""

    def _write_environment(self, env: Dict[str, str]) -> bool:
        """Whether that is the environment now."""
        if env == self._env:
            return True
        if any(not name or "=" in name for name in env):
            return False
        block = _block([os.fsencode("%s=%s" % pair) for pair in env.items()], _ENVIRONMENT)
        if not block or len(block) > _ENVIRONMENT_SIZE:
            return False
        self._copy(_ENVIRONMENT, block, len(block))
        self._env = dict(env)
        return True


def _block(texts: List[bytes], address: int) -> bytes:
    """An array of pointers as it lies at `address`, followed by what they point to; nothing for what C cannot hold."""
    pointers, at = [], address + 8 * (len(texts) + 1)
    for text in texts:
        if b"\0" in text:
            return b""
        pointers.append(at)
        at += len(text) + 1
    return struct.pack("=%dQ" % (len(texts) + 1), *pointers, 0) + b"".join(
        text + b"\0" for text in texts
    )


def _map_memory() -> None:
    _map(
        _BASE, _CODE - _BASE, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_ANONYMOUS, descriptor=-1
    )


def _map_code(code: bytes) -> None:
    descriptor = os.memfd_create("begin", os.MFD_CLOEXEC)
    try:
        write_all(descriptor, code)
        _map(_CODE, _CODE_SIZE, _PROT_READ | _PROT_EXEC, _MAP_PRIVATE, descriptor=descriptor)
    finally:
        os.close(descriptor)


def _map(address: int, size: int, protection: int, flags: int, *, descriptor: int) -> None:
    flags |= _MAP_FIXED_NOREPLACE
    if c_function("mmap")(address, size, protection, flags, descriptor, 0) != address:
        raise OSError(errno.ENOMEM, "no memory at %#x" % address)


def beginning(uid: int, failures: int) -> bytes:
    """The instructions for x86-64, with the address of the request in rdi."""
    complain = b"".join(
        (
            *(b"\x50", b"\x48\x89\xe6"),  # push rax; mov rsi, rsp
            *(_load(_RDI, failures), _load(_RDX, 8), _call(1)),  # write
            *(_load(_RDI, 127), _call(231)),  # exit_group
        )
    )
    execute = b"".join(
        (
            *(b"\x48\x8b\x3b", b"\x48\x8b\x73\x08"),  # mov rdi, [rbx]: path; mov rsi, [rbx+8]: argv
            *(b"\x48\x8b\x53\x10", _call(59)),  # mov rdx, [rbx+16]: envp; execve
        )
    )
    become = b"".join(
        (
            *(_load(_RDI, uid), _load(_RSI, uid), _load(_RDX, uid), _call(117)),  # setresuid
            *(b"\x85\xc0", b"\x75%c" % len(execute), execute),  # test eax, eax; jnz complain
        )
    )
    dup = b"".join(
        (
            b"\x41\x8b\x7d\x00",  # mov edi, [r13]
            b"\x41\x8b\x75\x08",  # mov esi, [r13+8]
            _call(33),  # dup2
            b"\x85\xc0",  # test eax, eax
            b"\x78%c" % (6 + len(become)),  # js complain
            b"\x49\x83\xc5\x10",  # add r13, 16
        )
    )
    dups = b"".join(
        (
            b"\x4c\x8b\x63\x20",  # mov r12, [rbx+32]
            b"\x4c\x8d\x6b\x28",  # lea r13, [rbx+40]
            b"\x49\xff\xcc",  # again: dec r12
            b"\x78%c" % (len(dup) + 2),  # js become
            dup,
            b"\xeb%c" % (0x100 - len(dup) - 7),  # jmp again
        )
    )
    return b"".join(
        (
            *(b"\x48\x89\xfb", _call(112)),  # mov rbx, rdi; setsid
            *(_load(_RDI, 2), b"\x48\x8d\x73\x18", b"\x31\xd2"),  # lea rsi, [rbx+24]; xor edx, edx
            *(b"\x41\xba\x08\x00\x00\x00", _call(14)),  # mov r10d, 8; rt_sigprocmask
            *(dups, become, complain),
        )
    )


_RAX, _RDX, _RSI, _RDI = 0, 2, 6, 7


def _load(register: int, value: int) -> bytes:
    return b"%c%b" % (0xB8 + register, struct.pack("<I", value))


def _call(number: int) -> bytes:
    return _load(_RAX, number) + b"\x0f\x05"
