"""A Unix user for each slot: hostile commands can do nothing to their init, to the host or to each other."""

from __future__ import annotations

import asyncio
import os
import subprocess
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from agentenv_backends.errors import HostStartError, SlotExhaustedError, SlotLostError
from agentenv_backends.requests import (
    ArchiveRequest,
    ExecRequest,
    KillRequest,
    ListRequest,
    ReadRequest,
    ShellRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    ExecStatus,
    FailureKind,
    KillResult,
    OpFailure,
    ReadResult,
    ShellResult,
    WriteResult,
)
from agentenv_backends.sandboxd.slot_processes import descendants_of
from tests.agentenv_backends.sandboxd.container import UID_BASE, launch_contained, slot_folders
from tests.agentenv_backends.sandboxd.harness import RunningHost, all_gone, owner, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes a container, for which it must be root"),
]


class Start(Protocol):
    """Start a host in a container and open these slots."""

    async def __call__(self, *slots: str, **settings: Any) -> RunningHost: ...


@pytest.fixture
async def start(pyz: Path) -> AsyncIterator[Start]:
    hosts: list[RunningHost] = []

    async def start(*slots: str, **settings: Any) -> RunningHost:
        host = await launch_contained(pyz, **settings)
        hosts.append(host)
        for slot in slots:
            await host.connection.open_slot(slot)
        return host

    yield start
    for host in hosts:
        try:
            await host.connection.close()
        finally:
            host.process.kill()
            host.process.wait()


@pytest.fixture
async def host(start: Start) -> RunningHost:
    """A host with two slots, `a` and `b`."""
    return await start("a", "b")


async def python(host: RunningHost, source: str, slot: str = "a", **options: Any) -> str:
    """What a Python program prints in a slot."""
    program = textwrap.dedent(source).encode()
    result = await host.run("exec python3 -", slot, stdin=program, **options)
    assert result.exit_code == 0, result.stderr.text()
    return result.stdout.text()


def init_of(host: RunningHost, number: int = 0) -> int:
    """A slot's init as this machine sees it, in the order of opening."""
    return [pid for pid in descendants_of(host.process.pid) if _uid(pid) >= UID_BASE][number]


def _uid(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))


# --- who is who ------------------------------------------------------------------------------------------------------


async def test_each_slot_is_a_user_with_folders_of_its_own(host: RunningHost) -> None:
    first = (await host.run("id -u; id -g; id -G; pwd; echo $HOME $TMPDIR")).stdout.text().split()
    second = (await host.run("id -u; id -g; id -G; pwd; echo $HOME $TMPDIR", "b")).stdout.text()
    assert len(set(first[:3])) == 1
    assert int(first[0]) > UID_BASE
    assert not set(first) & set(second.split())
    assert host.connection.workspace_dir("a") == first[3] == first[4]
    modes = await host.run("stat -c '%a %u' $HOME $TMPDIR; umask")
    assert modes.stdout.text() == f"700 {first[0]}\n700 {first[0]}\n0022\n"
    status = (await host.run("cat /proc/self/status")).stdout.text()
    assert f"Uid:\t{first[0]}\t{first[0]}\t{first[0]}\t{first[0]}\n" in status
    assert "CapPrm:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


async def test_the_host_says_what_is_in_force(host: RunningHost) -> None:
    facts = host.facts
    assert facts.isolation == "user"
    assert facts.no_capabilities
    assert facts.no_new_privs
    assert facts.root_readonly
    assert facts.network == "none"
    assert facts.slot_uids.startswith(f"{UID_BASE}-")
    assert facts.process_limit.startswith("rlimit, each slot")
    assert facts.disk_limit == "size of each folder's file system"
    assert not facts.single_use
    assert any("command lines" in sentence for sentence in facts.gives_up)


async def test_commands_have_default_signals_their_limits_and_no_descriptors_but_three(
    host: RunningHost,
) -> None:
    shown = await host.run(
        "ls /proc/self/fd; ulimit -u; ulimit -n; ulimit -c; cat /proc/self/oom_score_adj"
    )
    assert shown.stdout.text().split() == ["0", "1", "2", "3", "40", "1024", "0", "900"]
    ignored = (await host.run("grep -E 'Sig(Ign|Blk)' /proc/self/status")).stdout.text()
    # 32 and 33 the C library keeps to itself; `posix_spawn` may leave them ignored.
    assert all(int(line.split()[1], 16) & ~0x180000000 == 0 for line in ignored.splitlines())


async def test_environments_and_scripts_of_any_size_reach_a_command(host: RunningHost) -> None:
    assert (await host.run("echo $X", env={"X": "y"})).stdout.text() == "y\n"
    long = "#" * 200_000 + "\necho end; cat"
    assert (await host.run(long, stdin=b"given")).stdout.text() == "end\ngiven"
    assert await host.refused(ExecRequest("true", env={"A": "x\0"})) == "bad_request"
    assert await host.refused(ExecRequest("true", env={"A": "x" * 300_000})) == "bad_request"
    assert (await host.run("pwd", cwd=".")).exit_code == 0


# --- signals and looks -----------------------------------------------------------------------------------------------


async def test_programs_of_every_name_begin_as_the_slots_user(host: RunningHost) -> None:
    await host.run("for n in $(seq 20); do cp $(command -v id) program$n; done; echo x > none")
    who = (await host.run(("id", "-u"))).stdout.text()
    assert int(who) > UID_BASE
    names = [f"./program{number}" for number in range(1, 21)]
    for name in [*names, *names]:  # more of them than entry programs are kept of
        # What still runs has commands begin in another way.
        assert (await host.run((name, "-u"))).stdout.text() == who
    await host.execute(ShellRequest("sleep 1000 & true"))
    for name in [*names, *names]:
        assert (await host.run((name, "-u"))).stdout.text() == who
    for missing, code in (("./missing", 127), ("./none", 126), ("missing", 127)):
        assert (await host.run((missing,))).exit_code == code
    await host.execute(KillRequest())
    for missing, code in (("./missing", 127), ("./none", 126), ("missing", 127)):
        assert (await host.run((missing,))).exit_code == code


async def test_killing_all_one_can_kills_nobody_else(host: RunningHost) -> None:
    task = asyncio.create_task(host.run("sleep 1; echo done", "b"))
    for _ in range(3):
        result = await host.run("kill -9 -1; for p in /proc/[0-9]*; do kill -9 ${p#/proc/}; done")
        assert result.exit_code != 0
    assert (await task).stdout.text() == "done\n"
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_nobody_elses_process_can_be_signalled_traced_or_read(host: RunningHost) -> None:
    task = asyncio.create_task(host.run("SECRET=1 exec sleep 20", "b"))
    shown = await python(
        host,
        """
        import ctypes, os, resource, time
        libc = ctypes.CDLL(None, use_errno=True)
        def tried(what, action):
            try:
                action()
            except OSError:
                return
            print("possible:", what)
        def ptrace(pid):
            for request in (16, 0x4206):  # attach, seize
                if libc.ptrace(request, pid, 0, 0) == 0:
                    print("possible: ptrace", pid)
        for _ in range(200):
            others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
            if len(others) >= 4:
                break
            time.sleep(0.01)
        print(len(others) >= 4)
        for pid in others:
            for number in (0, 1, 9, 15, 19, 23, 40):
                tried(f"signal {number} to {pid}", lambda: os.kill(pid, number))
            for name in ("mem", "environ", "maps", "stack", "auxv", "io", "syscall"):
                tried(name, lambda: os.read(os.open(f"/proc/{pid}/{name}", os.O_RDONLY), 1))
            for name in ("oom_score_adj", "comm", "mem", "clear_refs", "coredump_filter", "timerslack_ns"):
                tried(name, lambda: os.write(os.open(f"/proc/{pid}/{name}", os.O_WRONLY), b"1"))
            for name in ("fd", "map_files", "fdinfo"):
                tried(name, lambda: os.listdir(f"/proc/{pid}/{name}"))
            for name in ("root", "cwd", "exe"):
                tried(name, lambda: os.stat(f"/proc/{pid}/{name}/"))
            tried("prlimit", lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0)))
            ptrace(pid)
        """,
    )
    assert shown == "True\n"
    task.cancel()
    await asyncio.wait({task})


async def test_a_slot_reaches_neither_its_neighbours_folders_nor_what_is_roots(
    host: RunningHost,
) -> None:
    await host.execute(WriteRequest("secret", b"x"), "b")
    other = host.connection.workspace_dir("b")
    denied = await host.run(f"cat {other}/secret; ls {other}; echo x > {other}/y; cat /etc/shadow")
    assert denied.stdout.text() == ""
    assert denied.stderr.text().count("Permission denied") == 4
    assert await host.refused(ReadRequest(f"{other}/secret")) == "outside_workspace"


# --- nothing outlives a call -----------------------------------------------------------------------------------------

DAEMONS = """
import ctypes, os, signal, threading, time
for way in range(4):
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        if os.fork() == 0:
            if way == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            if way == 2:  # its first thread is a zombie, the second goes on
                threading.Thread(target=lambda: time.sleep(1000)).start()
                ctypes.CDLL(None).syscall(60, 0)
            if way == 3:
                ctypes.CDLL(None).prctl(36, 1)  # a subreaper for those below it
                if os.fork() == 0:
                    time.sleep(1000)
            time.sleep(1000)
        os._exit(0)
time.sleep(0.2)
"""


async def test_whatever_way_a_process_hides_it_is_dead_after_its_call(host: RunningHost) -> None:
    family = host.family()
    await python(host, DAEMONS)
    assert host.family() == family
    assert await host.execute(KillRequest()) == KillResult(0)


async def test_a_deadline_ends_a_fork_bomb_and_the_neighbour_notices_nothing(
    host: RunningHost,
) -> None:
    family = host.family()
    bomb = asyncio.create_task(host.run(":(){ :|:& };:; sleep 20", timeout_s=1.5))
    assert (
        await host.run("for i in 1 2 3 4 5 6 7 8; do echo $i; done | wc -l", "b")
    ).stdout.text() == "8\n"
    assert (await bomb).status is ExecStatus.TIMED_OUT
    assert host.family() == family
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_processes_are_counted_for_each_slot_alone(host: RunningHost) -> None:
    source = """
        import os, signal
        count = 0
        try:
            while count < 100:
                if os.fork() == 0:
                    signal.pause()
                count += 1
        except OSError:
            pass
        print(count)
    """
    counts = await asyncio.gather(python(host, source, "a"), python(host, source, "b"))
    assert all(30 <= int(count) < 40 for count in counts)


async def test_cancelling_ends_what_was_started(host: RunningHost) -> None:
    family = host.family()
    task = asyncio.create_task(host.run("sleep 1000 & setsid sleep 1000 & sleep 1000"))
    assert await until(lambda: len(host.family()) >= len(family) + 3)
    task.cancel()
    assert await until(lambda: host.family() == family)


# --- files -----------------------------------------------------------------------------------------------------------


async def test_files_are_touched_with_the_slots_rights_and_no_others(host: RunningHost) -> None:
    assert await host.execute(WriteRequest("d/f", b"x")) == WriteResult(1)
    uid = (await host.run("id -u")).stdout.text()
    assert (await host.run("stat -c %u d d/f")).stdout.text() == uid * 2
    await host.run("chmod 000 d/f")
    assert await host.refused(ReadRequest("d/f")) == "permission_denied"
    assert await host.refused(WriteRequest("d/f", b"y")) == "permission_denied"
    await host.run("chmod 000 d")
    assert await host.refused(ListRequest("d")) == "permission_denied"
    await host.run("ln -s /etc/shadow link; ln -s /mnt/1/workspace other; mkfifo pipe")
    for path in ("link", "other/x", "/etc/shadow", "../../1/workspace/x"):
        assert await host.refused(ReadRequest(path)) == "outside_workspace"
        assert await host.refused(WriteRequest(path, b"x")) == "outside_workspace"
    assert await host.refused(ReadRequest("pipe")) == "not_a_file"


async def test_no_race_leads_a_file_operation_outside(host: RunningHost) -> None:
    swap = """
import ctypes, os
libc = ctypes.CDLL(None)
os.mkdir("d")
open("d/shadow", "w").write("mine")
os.symlink("/etc", "link")
while True:
    assert libc.renameat2(-100, b"d", -100, b"link", 2) == 0  # exchange
"""
    await host.execute(WriteRequest("swap.py", swap.encode()))
    started = await host.execute(ShellRequest("python3 swap.py & sleep 0.2"))
    assert isinstance(started, ShellResult), started
    read, written = [], []
    for _ in range(1000):
        read.append(await host.execute(ReadRequest("d/shadow")))
        written.append(await host.execute(WriteRequest("d/agentenv-was-here", b"x")))
    assert {r.content for r in read if isinstance(r, ReadResult)} == {b"mine"}
    assert {r.kind for r in read if isinstance(r, OpFailure)} >= {FailureKind.OUTSIDE_WORKSPACE}
    assert any(isinstance(result, WriteResult) for result in written)
    assert not Path("/etc/agentenv-was-here").exists()


async def test_a_full_disk_is_the_slots_own(host: RunningHost) -> None:
    filled = await host.run(
        "cat /dev/zero > big; cat /dev/zero > $TMPDIR/big; stat -c %s big $TMPDIR/big"
    )
    assert filled.stderr.text().count("No space left") == 2
    sizes = [int(size) for size in filled.stdout.text().split()]
    assert sizes[0] <= 8 << 20
    assert sizes[1] <= 4 << 20
    assert await host.refused(WriteRequest("more", bytes(100_000))) == "no_space"
    assert await host.execute(WriteRequest("more", bytes(1 << 20)), "b") == WriteResult(1 << 20)


async def test_a_planted_set_user_id_program_gives_nothing(host: RunningHost) -> None:
    planted = "cp /usr/bin/id /var/tmp/id; chmod 6755 /var/tmp/id; stat -c %a /var/tmp/id"
    assert (await host.run(planted)).stdout.text() == "6755\n"
    uid = (await host.run("id -u", "b")).stdout.text()
    assert (await host.run("/var/tmp/id -u", "b")).stdout.text() == uid


async def test_a_slot_that_opens_its_folders_to_everyone_opens_them_to_nobody(
    host: RunningHost,
) -> None:
    await host.run("echo x > f; chmod -R 777 . $TMPDIR")
    other = host.connection.workspace_dir("a")
    tried = await host.run(f"cat {other}/f; echo y > {other}/g", "b")
    assert tried.stderr.text().count("Permission denied") == 2
    assert (await host.run("ls")).stdout.text() == "f\n"


# --- resets ----------------------------------------------------------------------------------------------------------

HOSTILE_TREE = """
import os
os.makedirs("closed/inner")
open("closed/inner/file", "w").close()
os.chmod("closed/inner/file", 0)
os.chmod("closed/inner", 0)
os.chmod("closed", 0)
os.mkfifo("pipe")
os.symlink("/etc", "link")
os.link("pipe", "hard")
for number in range(3000):
    open(f"many-{number}", "w").close()
open(b"\\xff\\n -rf *", "w").close()
top = os.open(".", os.O_RDONLY)
for number in range(2500):
    os.mkdir("deep" * 20)
    os.chdir("deep" * 20)
os.chdir(top)
os.setxattr(".", "system.posix_acl_access", bytes.fromhex(
    "0200000001000700ffffffff02000700e0930400" "04000000ffffffff10000700ffffffff20000000ffffffff"))
"""
LEFT_EVERYWHERE = """
import ctypes, os
for place in ("/dev/shm", "/tmp", "/var/tmp"):
    os.mkdir(place + "/left")
    open(place + "/left/file", "w").close()
    os.chmod(place + "/left", 0)
    open(place + "/file", "w").close()
libc = ctypes.CDLL(None)
assert libc.shmget(77, 4096, 0o1777) >= 0
assert libc.msgget(77, 0o1777) >= 0
assert libc.semget(77, 1, 0o1777) >= 0
"""
LOOK_AROUND = (
    "ls -A . $TMPDIR /dev/shm /tmp /var/tmp; cat /proc/sysvipc/* | grep -v key; stat -c '%a %h' . $TMPDIR;"
    " python3 -c 'import os; print(os.listxattr(os.curdir))'"
)


async def test_a_reset_slot_is_as_new_whatever_was_done_in_it(start: Start) -> None:
    host = await start("a", slots=1, slot_folders=(("/mnt/0/workspace", "/mnt/0/tmp"),))
    fresh = (await host.run(LOOK_AROUND)).stdout.text()
    first_uid = (await host.run("id -u")).stdout.text()
    await python(host, HOSTILE_TREE)
    await python(host, LEFT_EVERYWHERE)
    await host.connection.close_slot("a")
    await host.connection.open_slot("a")
    assert (await host.run(LOOK_AROUND)).stdout.text() == fresh
    assert (await host.run("id -u")).stdout.text() != first_uid


async def test_ids_are_used_again_only_after_all_others(start: Start) -> None:
    host = await start(slots=1, uid_count=6, slot_folders=(("/mnt/0/workspace", "/mnt/0/tmp"),))
    seen = []
    for _ in range(6):
        await host.connection.open_slot("a")
        seen.append(int((await host.run("id -u")).stdout.text()) - UID_BASE)
        await host.connection.close_slot("a")
    assert seen == [2, 4, 0, 2, 4, 0]


async def test_a_slot_whose_reset_cannot_be_proved_is_reported_and_its_folder_never_used_again(
    host: RunningHost,
) -> None:
    await host.run("mkdir held")
    server = next(pid for pid in descendants_of(host.process.pid) if _uid(pid) == 0)
    subprocess.run(
        [
            "nsenter",
            "-t",
            str(server),
            "-m",
            "mount",
            "-t",
            "tmpfs",
            "none",
            "/mnt/0/workspace/held",
        ],
        check=True,
    )
    with pytest.raises(SlotLostError, match="not used again"):
        await host.connection.close_slot("a")
    with pytest.raises(SlotLostError, match="every one of the 2 slot_folders is taken"):
        await host.connection.open_slot("c")
    await host.connection.close_slot("b")
    await host.connection.open_slot("c")
    assert (await host.run("pwd", "c")).stdout.text() == "/mnt/1/workspace\n"


async def test_an_init_that_is_killed_takes_its_processes_with_it_and_its_folder_is_clean(
    host: RunningHost,
) -> None:
    task = asyncio.create_task(host.run("touch x; sleep 1000 & setsid sleep 1000 & sleep 1000"))
    before = len(host.family())
    assert await until(lambda: len(host.family()) >= before + 3)
    family = [owner(pid) for pid in (init_of(host), *descendants_of(init_of(host)))]
    os.kill(family[0].pid, 9)
    with pytest.raises(SlotLostError) as lost:
        await task
    assert not isinstance(lost.value, SlotExhaustedError)
    assert await all_gone(family)
    assert (await host.run("echo alive", "b")).stdout.text() == "alive\n"
    await host.connection.open_slot("c")
    assert (await host.run("ls -A; pwd", "c")).stdout.text() == "/mnt/0/workspace\n"


async def test_many_slots_open_and_close_at_once(start: Start) -> None:
    host = await start(
        slots=8, slot_folders=tuple((f"/mnt/{n}/workspace", f"/mnt/{n}/tmp") for n in range(8))
    )
    family = host.family()
    for _ in range(2):
        names = [f"s{number}" for number in range(8)]
        await asyncio.gather(*(host.connection.open_slot(name) for name in names))
        await asyncio.gather(*(host.run("sleep 100 & touch $TMPDIR/x x", name) for name in names))
        await asyncio.gather(*(host.connection.close_slot(name) for name in names))
    assert host.family() == family


async def test_a_host_that_hears_nothing_ends_itself_and_all_its_slots(start: Start) -> None:
    host = await start("a", "b", lease_s=1.0)
    reasons: list[str] = []
    host.connection.on_lost(reasons.append)
    task = asyncio.create_task(host.run("setsid sleep 1000 & sleep 1000"))
    family = host.family()
    assert host.connection._lease_timer is not None
    host.connection._lease_timer.cancel()  # as good as a driver that stands still
    assert await until(lambda: bool(reasons))
    assert "nothing heard" in reasons[0]
    await asyncio.gather(task, return_exceptions=True)
    assert await all_gone(family)


# --- the container's root --------------------------------------------------------------------------------------------

ONE = (("/mnt/0/workspace", "/mnt/0/tmp"),)


async def test_as_root_a_slot_survives_what_an_agent_kills_by_mistake(start: Start) -> None:
    host = await start("a", slots=1, slot_folders=ONE, run_as_root=True)
    assert host.facts.run_as_root
    assert host.facts.single_use
    for command in (
        "kill -9 -1",
        "pkill -9 python3",
        "kill -TERM 1; kill -HUP 1; kill -9 1",
        "kill -34 -1",
    ):
        await host.run(command)
    assert (await host.run("id -u; touch /mnt/x && echo made")).stdout.text() == "0\nmade\n"
    assert await host.execute(WriteRequest("f", b"x")) == WriteResult(1)


async def test_as_root_nothing_outlives_a_call_and_no_process_of_ours_can_be_traced(
    start: Start,
) -> None:
    host = await start("a", slots=1, slot_folders=ONE, run_as_root=True)
    family = host.family()
    await python(host, DAEMONS)
    assert host.family() == family
    shown = await python(
        host,
        """
        import ctypes, os
        libc = ctypes.CDLL(None)
        def readable(pid):
            paths = [f"/proc/{pid}/{name}" for name in ("environ", "mem", "maps", "fd/0", "exe", "cwd")]
            found = []
            for path in paths:
                try:
                    found.append(os.open(path, os.O_RDONLY))
                except OSError:
                    pass
            return found
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            if pid != os.getpid():
                print(pid, libc.ptrace(16, pid, 0, 0), readable(pid))
        """,
    )
    assert [line.split()[1:] for line in shown.splitlines()] == [["-1", "[]"]] * 2


async def test_a_root_that_ends_its_own_slot_has_used_it_up(start: Start) -> None:
    host = await start("a", slots=1, slot_folders=ONE, run_as_root=True)
    suicide = """
        import os
        keeper = next(
            int(line.split()[1])
            for name in sorted(os.listdir("/proc")) if name.isdigit() and int(name) == os.getppid()
            for line in open(f"/proc/{name}/status") if line.startswith("Uid:")
        )
        parent = os.getppid()
        os.setresuid(keeper, keeper, keeper)
        os.kill(parent, 9)
    """
    program = textwrap.dedent(suicide).encode()
    with pytest.raises(SlotExhaustedError, match="killed by signal 9"):
        await host.run("exec python3 -", stdin=program)
    with pytest.raises(SlotLostError, match="a host of its own"):
        await host.connection.open_slot("b")


# --- what is refused, and what is chosen -----------------------------------------------------------------------------


async def test_without_the_capabilities_it_needs_the_host_says_which_and_how(start: Start) -> None:
    with pytest.raises(HostStartError, match=r"KILL, SETUID are missing.*--cap-add SETUID"):
        await start(capabilities=("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID"))


async def test_folders_that_hold_something_serve_one_slot_once(start: Start) -> None:
    with pytest.raises(HostStartError, match="something lies in one of them"):
        await start(before="touch /mnt/0/workspace/x")
    host = await start("a", slots=1, slot_folders=ONE, before="touch /mnt/0/workspace/x")
    assert host.facts.single_use
    assert (await host.run("ls")).stdout.text() == "x\n"


async def test_ids_that_cannot_be_are_refused(start: Start) -> None:
    with pytest.raises(HostStartError, match="two ids are needed"):
        await start(uid_count=3)
    with pytest.raises(HostStartError, match="not mapped"):
        await start(uid_base=4_294_967_280)


async def test_auto_is_bubblewrap_where_it_works_and_users_where_it_does_not(start: Start) -> None:
    assert (await start(isolation="auto")).facts.isolation == "bubblewrap"
    without = await start("a", isolation="auto", before="mount --bind /dev/null /usr/bin/bwrap")
    assert without.facts.isolation == "user"


PYTHON_38 = Path.home() / ".pyenv/versions/3.8.18/bin/python3.8"


@pytest.mark.skipif(not PYTHON_38.exists(), reason="no Python 3.8 here")
async def test_the_server_runs_on_python_3_8(start: Start) -> None:
    host = await start("a", server_python=str(PYTHON_38))
    assert host.facts.server_python.startswith("3.8.")
    await python(host, LEFT_EVERYWHERE)
    await host.connection.close_slot("a")
    await host.connection.open_slot("a")
    assert (await host.run("ls -A /tmp /dev/shm; echo hi")).stdout.text().endswith("hi\n")


async def test_an_archive_of_a_slot_holds_what_it_may_read(host: RunningHost) -> None:
    await host.run("echo x > f; ln -s /etc/shadow s")
    assert not isinstance(await host.execute(ArchiveRequest()), OpFailure)


async def test_a_reset_among_slots_that_plant_links_harms_none_of_them(start: Start) -> None:
    host = await start("a", "b", slots=3, slot_folders=slot_folders(3))
    await host.connection.open_slot("c")
    await host.run("echo kept > f", "c")
    target = Path(host.connection.workspace_dir("c")).parent
    race = f"""
import os
os.umask(0)
os.makedirs("/var/tmp/trap/workspace")
while True:
    try:
        os.rename("/var/tmp/trap", "/var/tmp/real")
        os.symlink("{target}", "/var/tmp/trap")
        os.unlink("/var/tmp/trap")
        os.rename("/var/tmp/real", "/var/tmp/trap")
    except OSError:
        pass
"""
    racing = asyncio.create_task(host.run("exec python3 -", "b", stdin=race.encode(), timeout_s=60))
    for _ in range(10):
        await host.run(
            "for i in $(seq 50); do mkdir -p /var/tmp/trap/workspace/x /var/tmp/mine/x; done"
        )
        await host.connection.close_slot("a")
        await host.connection.open_slot("a")
        assert (await host.run("ls -A /var/tmp")).stdout.text().split() in ([], ["trap"], ["real"])
    racing.cancel()
    await asyncio.wait({racing})
    assert (await host.run("cat f", "c")).stdout.text() == "kept\n"
