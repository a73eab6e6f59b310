"""The entry program: a command's identity, then its shell."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import agentenv_backends
from agentenv_backends.sandboxd.slot_entry import FAILURES, entry_program, open_entry_program
from tests.agentenv_backends.sandboxd.container import UID_BASE

BACKENDS = Path(agentenv_backends.__file__).parents[1]
KNOWN = os.uname().machine in ("x86_64", "aarch64")
needs_program = pytest.mark.skipif(not KNOWN, reason=f"no entry program for {os.uname().machine}")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


def begin(uid: int, path: str, *arguments: str, env: dict[str, str]) -> tuple[str, bytes, int]:
    """What the program prints, what it complains of, and its exit code."""
    program = open_entry_program(uid, path)
    (out, out_end), (failures, failures_end) = os.pipe(), os.pipe()
    pid = os.posix_spawn(
        f"/proc/self/fd/{program}",
        arguments,
        env,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, out_end, 1),
            (os.POSIX_SPAWN_DUP2, failures_end, FAILURES),
        ],
    )
    for descriptor in (program, out_end, failures_end):
        os.close(descriptor)
    with os.fdopen(out, "rb") as output, os.fdopen(failures, "rb") as complaints:
        said = output.read().decode(), complaints.read()
    return *said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_program
def test_it_becomes_the_program_with_its_arguments_and_environment() -> None:
    script = 'echo "$0|$1|$2|$X"; exit 3'
    said = begin(
        os.getuid(), "/bin/sh", "name", "-c", script, "zero", "a b", "", env={"X": "ü", "Y": ""}
    )
    assert said == ("zero|a b||ü\n", b"", 3)


@needs_program
def test_the_program_has_no_descriptor_of_it() -> None:
    shown, _, _ = begin(os.getuid(), "/bin/ls", "ls", "/proc/self/fd", env={})
    assert str(FAILURES) not in shown.split()


@needs_program
@needs_root
def test_all_its_ids_are_the_users() -> None:
    uid = UID_BASE + 70_000
    shown, _, _ = begin(uid, "/bin/grep", "grep", "Uid:", "/proc/self/status", env={})
    assert shown.split() == ["Uid:", *[str(uid)] * 4]


@needs_program
def test_it_says_what_the_kernel_refuses() -> None:
    said = begin(os.getuid(), "/no/such/shell", "sh", env={})
    assert said == ("", struct.pack("<q", -errno.ENOENT), 127)


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_it_is_a_file_that_a_kernel_loads(machine: str, number: int) -> None:
    program = entry_program(machine, 12345, "/bin/sh")
    kind, machine_number, _, entry = struct.unpack_from("<HHIQ", program, 16)
    address, _, in_file, in_memory = struct.unpack_from("<QQQQ", program, 64 + 16)
    assert (program[:5], kind, machine_number) == (b"\x7fELF\x02", 2, number)
    assert in_file == in_memory == len(program)
    assert program[entry - address :].endswith(b"/bin/sh\0")


@needs_root
@pytest.mark.parametrize("machine", [os.uname().machine, "another"])
def test_commands_of_a_user_begin_with_and_without_it(machine: str) -> None:
    source = f"""
    import _ctypes, os, signal, sys  # an interpreter may lie where only root can read
    sys.path.insert(0, {str(BACKENDS)!r})
    from agentenv_backends.sandboxd import slot_exec, slot_spawn, slot_user

    system = list(os.uname())
    os.uname = lambda: os.uname_result((*system[:4], {machine!r}))
    user = slot_user.SlotUser({UID_BASE + 70_000}, {UID_BASE + 70_001})
    oom_score = slot_exec.OomScore()
    user.become_init()
    spawner = slot_spawn.Spawner(oom_score, user)
    command = ["sh", "-c", "grep Uid /proc/self/status; echo $X; kill -PIPE $$; exit 5"]
    for _ in range(2):
        pid = spawner.spawn("/bin/sh", command, {{"X": "y", "PATH": "/usr/bin:/bin"}}, [])
        assert os.waitpid(pid, 0)[1] == signal.SIGPIPE
        assert spawner.failure(signal.SIGPIPE) is None
    try:
        pid = spawner.spawn("/no/such/shell", command, {{}}, [])
        raise spawner.failure(os.waitpid(pid, 0)[1])
    except FileNotFoundError:
        print("not found")
    pid = spawner.spawn("/bin/sh", ["sh", "-c", "exit 127"], {{}}, [])
    assert spawner.failure(os.waitpid(pid, 0)[1]) is None
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    once = ["Uid:", *[str(UID_BASE + 70_000)] * 4, "y"]
    assert done.stdout.split() == [*once, *once, "not", "found"]
