"""Commands of a user that begin in the init's own memory: what they are then, and when they begin in another way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import agentenv_backends
from tests.agentenv_backends.sandboxd.container import UID_BASE
from tests.waiting import WITHIN_S

BACKENDS = Path(agentenv_backends.__file__).parents[1]
UID = UID_BASE + 70_010
LIBRARYS_OWN_SIGNALS = 0b11 << 31
"""32 and 33, which no program can set: `posix_spawn` of the C library leaves them ignored in what it starts."""
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="known for x86-64 alone"),
]
PRELUDE = f"""
import _ctypes, json, os, signal, sys  # an interpreter may lie where only root can read
sys.path.insert(0, {str(BACKENDS)!r})
from agentenv_backends.sandboxd import slot_exec, slot_spawn, slot_user
user = slot_user.SlotUser({UID}, {UID + 1})
oom_score = slot_exec.OomScore()
user.become_init()
spawner = slot_spawn.Spawner(oom_score, user)
begun = []
begin = spawner._beginner.begin
def noted(*values):
    pid = begin(*values)
    begun.append(pid != 0)
    return pid
spawner._beginner.begin = noted
def run(command, env=None, *more, path="/bin/bash"):
    reading, writing = os.pipe()
    source = os.open("/dev/null", os.O_RDONLY)
    actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, writing, 1), *more]
    pid = spawner.spawn(path, ["bash", "-c", command], env or {{"PATH": "/usr/bin:/bin"}}, actions)
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        said = output.read().decode()
    return said, os.waitpid(pid, 0)[1], pid
"""


def in_an_init(body: str) -> Any:
    """What a process that is a slot's init for a moment says."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
        check=True,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    return json.loads(done.stdout)


def test_a_command_is_the_user_leads_a_session_and_has_nothing_but_what_it_was_given() -> None:
    said, status, pid, begun = in_an_init("""
    command = "cat /proc/self/status; ls /proc/$$/fd; ps -o sid= -p $$; echo $X; exit 3"
    print(json.dumps([*run(command, {"X": "ü", "PATH": "/usr/bin:/bin"}), begun]))
    """)
    *lines, session, variable = said.splitlines()
    fields = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert fields["Uid"].split() == [str(UID)] * 4
    ignored = int(fields["SigIgn"], 16) & ~LIBRARYS_OWN_SIGNALS
    assert (int(fields["SigBlk"], 16), ignored) == (0, 0)
    assert [line for line in lines if ":\t" not in line] == ["0", "1", "2"]
    assert (int(session), variable, os.waitstatus_to_exitcode(status)) == (pid, "ü", 3)
    assert begun == [True]


def test_one_that_cannot_begin_says_why_and_the_next_one_begins() -> None:
    first, second, begun = in_an_init("""
    _, status, _ = run("true", path="/no/such/shell")
    failure = spawner.failure(status).strerror
    print(json.dumps([failure, run("echo on")[0], begun]))
    """)
    assert (first, second, begun) == ("No such file or directory", "on\n", [True, True])


def test_while_a_process_of_the_user_lives_commands_begin_through_a_program_of_their_own() -> None:
    """It could stop a child in whose memory the init waits."""
    said, again, begun = in_an_init("""
    other = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    said = run("echo beside")[0]
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    print(json.dumps([said, run("echo alone")[0], begun]))
    """)
    assert (said, again, begun) == ("beside\n", "alone\n", [True])


@pytest.mark.parametrize(
    "call",
    [
        'run("echo $0 fine #" + "x" * 70_000)',
        'run("echo $0 fine", {"PATH": "/usr/bin", "Y": "y" * 70_000})',
        'run("echo $0 fine", None, (os.POSIX_SPAWN_DUP2, source, 7))',
        'run("echo $0 fine", None, (os.POSIX_SPAWN_OPEN, 3, "/dev/null", os.O_RDONLY, 0))',
    ],
    ids=["a long command", "a large environment", "a high descriptor", "an opened file"],
)
def test_what_is_out_of_the_ordinary_begins_all_the_same(call: str) -> None:
    said, begun = in_an_init(f"""
    source = os.open("/dev/null", os.O_RDONLY)
    print(json.dumps([{call}[0], begun]))
    """)
    assert (said, begun) == ("bash fine\n", [False])


@pytest.mark.parametrize("env", [{"A=B": "c"}, {"A": "b\0c"}])
def test_an_environment_that_no_program_can_have_is_refused(env: dict[str, str]) -> None:
    assert (
        in_an_init(f"""
    try:
        run("true", {env!r})
    except ValueError:
        print(json.dumps("refused"))
    """)
        == "refused"
    )
