"""Snapshots of workspaces on real hosts, in the ways they are kept: overlays, and copies under each isolation."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.errors import SlotLostError
from agentenv_backends.requests import KillRequest, ReadRequest, ShellRequest, WriteRequest
from agentenv_backends.results import ExecStatus, KillResult, ReadResult, ShellResult
from agentenv_backends.sandboxd.packing import write_zipapp
from agentenv_backends.sandboxd.slot_processes import descendants_of
from tests.agentenv_backends.sandboxd.container import launch_contained
from tests.agentenv_backends.sandboxd.harness import (
    RunningHost,
    StartHost,
    all_gone,
    launch,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.sandbox

NOBODY = 65534
FILL = r"""
mkdir -p src/deep/er empty; echo one > src/one; echo two > src/deep/two; chmod 640 src/one
ln src/one src/deep/same; ln -s ../one src/deep/link; ln -s /etc/passwd outside; ln -s nowhere dangling
mkfifo pipe; chmod 600 pipe; echo run > tool; chmod 755 tool; echo secret > closed; chmod 000 closed
mkdir shut; echo in > shut/file; chmod 500 shut; truncate -s 8M sparse; echo end >> sparse
head -c 300000 /dev/urandom > binary; printf x > 'odd name
é'; touch $'raw\xff'; mkdir many; for n in $(seq 50); do echo $n > many/$n; done
touch -d '2001-02-03 04:05:06.123456789' src/one many; touch -h -d 2002-02-02 dangling
python3 -c 'import os
try: os.setxattr("tool", "user.note", b"kept\xff")
except OSError: pass'
"""
LIST = r"""
import hashlib, os, stat
for folder, names, files in os.walk(b".", followlinks=False):
    for name in [b"."] * (folder == b".") + sorted(names + files):
        path = os.path.join(folder, name)
        info = os.lstat(path)
        kind, more = stat.S_IFMT(info.st_mode), ""
        if stat.S_ISLNK(kind):
            more = os.readlink(path)
        elif stat.S_ISREG(kind):
            os.access(path, os.R_OK) or os.chmod(path, 0o400)
            more = (hashlib.sha256(open(path, "rb").read()).hexdigest(), info.st_nlink, os.listxattr(path))
            os.chmod(path, stat.S_IMODE(info.st_mode))
        size = 0 if stat.S_ISDIR(kind) else info.st_size
        print(path, oct(info.st_mode), info.st_uid == os.getuid(), size, info.st_mtime_ns, more)
"""


@pytest.fixture
def readable_pyz() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield write_zipapp(path / "sandboxd.pyz")


class Ways:
    """Starts hosts that keep snapshots in one of the ways."""

    def __init__(self, start_host: StartHost, readable_pyz: Path) -> None:
        self._start_host = start_host
        self._readable_pyz = readable_pyz
        self._others: list[RunningHost] = []

    async def start(self, way: str, *slots: str, disk_mb: int = 64) -> RunningHost:
        host = await self._start(way, len(slots), disk_mb)
        assert host.facts.snapshot == ("overlay" if way == "overlay" else "copy")
        for slot in slots:
            await host.connection.open_slot(slot)
        return host

    async def _start(self, way: str, slots: int, disk_mb: int) -> RunningHost:
        if way != "none" and os.geteuid() != 0:
            pytest.skip("needs root: to mount, or to become another user")
        if way == "overlay":
            host = await self._start_host(disk_mb=disk_mb)
            if host.facts.snapshot != "overlay":
                pytest.skip("this kernel mounts no overlays over id-mapped memory file systems")
        elif way == "copy":
            host = await launch(
                self._readable_pyz, "/usr/bin/python3", NOBODY, owner_pid=0, disk_mb=disk_mb
            )
            self._others.append(host)
        elif way == "user":
            host = await launch_contained(self._readable_pyz, slots)
            self._others.append(host)
        else:
            host = await self._start_host(isolation="none")
        return host

    async def end(self) -> None:
        for host in self._others:
            await host.connection.close()
            host.process.wait()


@pytest.fixture
async def ways(start_host: StartHost, readable_pyz: Path) -> AsyncIterator[Ways]:
    ways = Ways(start_host, readable_pyz)
    yield ways
    await ways.end()


@pytest.fixture(params=["overlay", "copy", "user", "none"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def listing(host: RunningHost, slot: str) -> list[str]:
    result = await host.run(f"python3 -c '{LIST}'", slot, max_output_bytes=1 << 20)
    assert result.exit_code == 0, result.stderr.text()
    return sorted(result.stdout.text().splitlines())


async def content(host: RunningHost, path: str, slot: str) -> bytes:
    result = await host.execute(ReadRequest(path), slot)
    assert isinstance(result, ReadResult), result
    return result.content


async def prepared(
    ways: Ways, way: str, *members: str, fill: str = "echo hi > file"
) -> RunningHost:
    """A host with a snapshot `s` of its slot `a`, and further slots."""
    host = await ways.start(way, "a", *members)
    assert (await host.run(fill)).exit_code == 0
    await host.connection.take_snapshot("a", "s")
    return host


# --- Contents -------------------------------------------------------------------------------------


async def test_a_member_has_all_that_the_snapshot_was_taken_of(ways: Ways, way: str) -> None:
    host = await ways.start(way, "a", "b")
    await host.run(FILL)
    before = await listing(host, "a")
    assert len(before) > 60
    await host.connection.take_snapshot("a", "s")
    await host.connection.restore_snapshot("b", "s")
    assert await listing(host, "b") == before
    assert await listing(host, "a") == before


async def test_nobody_sees_the_writes_of_another(ways: Ways, way: str) -> None:
    fill = "mkdir d; for n in 1 2 3; do echo same > d/$n; done; ln d/1 d/linked; chmod 400 d/2"
    host = await prepared(ways, way, "b", "c", "d", fill=fill)
    await host.connection.restore_snapshot("b", "s")
    change = "echo mine >> d/1; rm -f d/2; mv d/3 d/4; echo new > new; chmod 700 d; touch -d 2001-01-01 d"
    await host.run(change, "b")
    await host.connection.restore_snapshot("c", "s")
    await host.run(change.replace("mine", "theirs"))
    await host.connection.restore_snapshot("d", "s")
    assert await listing(host, "c") == await listing(host, "d")
    assert await content(host, "d/1", "c") == b"same\n"
    assert await content(host, "d/1", "b") == b"same\nmine\n"
    assert await content(host, "d/1", "a") == b"same\ntheirs\n"


async def test_hard_links_are_one_file_when_written_to(ways: Ways, way: str) -> None:
    host = await prepared(ways, way, "b", fill="echo hi > file; ln file other")
    await host.connection.restore_snapshot("b", "s")
    await host.run("echo more >> file", "b")
    assert await content(host, "other", "b") == b"hi\nmore\n"


async def test_a_member_may_write_everything(ways: Ways, way: str) -> None:
    fill = "mkdir -p d/e; echo x > d/e/f; chmod 0 d/e/f; chmod 500 d/e; chmod 555 ."
    host = await prepared(ways, way, "b", fill=fill)
    await host.connection.restore_snapshot("b", "s")
    result = await host.run("chmod 700 . d/e && chmod 600 d/e/f && echo y > d/e/f && rm -r d", "b")
    assert result.exit_code == 0, result.stderr.text()
    assert isinstance(await host.execute(WriteRequest("file", b"x"), "b"), object)
    assert await content(host, "file", "b") == b"x"


async def test_commands_begin_in_the_restored_workspace(ways: Ways, way: str) -> None:
    host = await prepared(ways, way, "b")
    await host.connection.restore_snapshot("b", "s")
    for slot in "ab":
        result = await host.run("cat file; cd $HOME && cat file; ls -A", slot)
        assert result.stdout.text() == "hi\nhi\nfile\n"


async def test_every_process_is_dead_when_the_workspace_is_frozen(ways: Ways, way: str) -> None:
    host = await ways.start(way, "a", "b")
    writer = "exec 9>> f; (trap '' TERM; while :; do echo x >&9; done) & setsid sleep 1000 &"
    result = await host.execute(ShellRequest(f"{writer} until [ -s f ]; do :; done"))
    assert isinstance(result, ShellResult), result
    await host.connection.take_snapshot("a", "s")
    assert (await host.execute(KillRequest())) == KillResult(killed_processes=0)
    await host.connection.restore_snapshot("b", "s")
    sizes = [(await host.run("stat -c %s f", slot)).stdout.text() for slot in "ab"]
    assert sizes[0] == sizes[1] != "0\n"


async def test_a_snapshot_waits_its_turn_among_the_requests(ways: Ways, way: str) -> None:
    host = await ways.start(way, "a", "b")
    before = asyncio.create_task(host.run("sleep 0.3; echo before > file"))
    await asyncio.sleep(0)
    taken = asyncio.create_task(host.connection.take_snapshot("a", "s"))
    await asyncio.sleep(0)
    after = asyncio.create_task(host.run("echo after >> file; cat file"))
    await asyncio.gather(before, taken)
    await host.connection.restore_snapshot("b", "s")
    assert await content(host, "file", "b") == b"before\n"
    assert (await after).stdout.text() == "before\nafter\n"


async def test_closing_a_slot_does_not_wait_for_the_snapshots_of_others(ways: Ways) -> None:
    host = await ways.start("overlay", "a", "b")
    endless = asyncio.create_task(host.run("sleep 100", "a"))
    await asyncio.sleep(0)
    taken = asyncio.create_task(host.connection.take_snapshot("a", "s"))
    await host.connection.close_slot("b")
    assert not taken.done()
    await host.connection.close_slot("a")
    await asyncio.wait({endless, taken})
    assert isinstance(endless.exception(), SlotLostError)
    assert isinstance(taken.exception(), SlotLostError)


# --- Life -----------------------------------------------------------------------------------------


async def test_members_live_on_when_the_snapshot_and_its_slot_are_gone(
    ways: Ways, way: str
) -> None:
    host = await prepared(ways, way, "b")
    await host.connection.close_slot("a")
    await host.connection.restore_snapshot("b", "s")
    await host.connection.drop_snapshot("s")
    await host.connection.drop_snapshot("s")
    await host.run("echo more >> file; echo new > new", "b")
    assert await content(host, "file", "b") == b"hi\nmore\n"


async def test_what_is_not_there_or_not_fresh_is_refused(ways: Ways, way: str) -> None:
    host = await prepared(ways, way, "b", "c")
    with pytest.raises(SlotLostError, match="there is no snapshot 'other'"):
        await host.connection.restore_snapshot("b", "other")
    with pytest.raises(SlotLostError, match="there is a snapshot 's' already"):
        await host.connection.take_snapshot("b", "s")
    await host.run("true", "c")
    with pytest.raises(SlotLostError, match="was used already"):
        await host.connection.restore_snapshot("c", "s")
    await host.connection.restore_snapshot("b", "s")
    with pytest.raises(SlotLostError, match="was used already"):
        await host.connection.restore_snapshot("b", "s")
    await host.connection.drop_snapshot("s")
    with pytest.raises(SlotLostError, match="there is no snapshot 's'"):
        await host.connection.fetch_snapshot("s")
    with pytest.raises(SlotLostError, match=r"no such slot|has no slot"):
        await host.connection.restore_snapshot("never opened", "s")


async def test_a_snapshot_can_be_taken_of_a_restored_slot_and_again(ways: Ways, way: str) -> None:
    host = await prepared(ways, way, "b", "c", "d", fill=FILL)
    await host.connection.restore_snapshot("b", "s")
    await host.run("echo b >> src/one; rm -r many; mkdir many; echo x > many/x", "b")
    await host.connection.take_snapshot("b", "second")
    await host.connection.restore_snapshot("c", "second")
    assert await listing(host, "c") == await listing(host, "b")
    await host.run("echo a >> src/one")
    await host.connection.take_snapshot("a", "third")
    await host.connection.restore_snapshot("d", "third")
    assert await listing(host, "d") == await listing(host, "a")


async def test_the_disk_limit_holds_for_what_a_member_writes(ways: Ways) -> None:
    for way in ("overlay", "copy"):
        host = await ways.start(way, "a", "b", disk_mb=8)
        await host.run("head -c 3M /dev/urandom > file")
        await host.connection.take_snapshot("a", "s")
        await host.connection.restore_snapshot("b", "s")
        result = await host.run("head -c 20M /dev/zero > big; stat -c %s big", "b")
        assert "No space left" in result.stderr.text()
        assert int(result.stdout.text()) <= 8 << 20


async def test_the_slot_that_was_frozen_may_still_use_all_its_disk_and_memory(ways: Ways) -> None:
    host = await ways.start("overlay", "a", disk_mb=64)
    for number in range(4):
        result = await host.run("head -c 63M /dev/urandom > file; stat -c %s file")
        assert result.status is ExecStatus.EXITED
        assert int(result.stdout.text()) == 63 << 20
        await host.connection.take_snapshot("a", f"s{number}")


# --- Carrying -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "to"),
    [
        ("overlay", "overlay"),
        ("overlay", "copy"),
        ("overlay", "none"),
        ("copy", "overlay"),
        ("none", "copy"),
    ],
)
async def test_a_snapshot_can_be_carried_to_another_host(ways: Ways, way: str, to: str) -> None:
    source = await prepared(ways, way, fill=FILL)
    expected = await listing(source, "a")
    archive = await source.connection.fetch_snapshot("s")
    members = [str(number) for number in range(4)]
    target = await ways.start(to, *members)
    await target.connection.put_snapshot("s", archive)
    await asyncio.gather(*(target.connection.restore_snapshot(slot, "s") for slot in members))
    for slot in members:
        assert await listing(target, slot) == expected
        await target.run("echo mine >> src/one", slot)
    assert await target.connection.fetch_snapshot("s") == archive


@pytest.mark.parametrize("way", ["overlay", "copy", "none"])
async def test_archives_of_many_frames_are_carried_whole(ways: Ways, way: str) -> None:
    fill = "head -c 40M /dev/urandom > big; sha256sum big > sum"
    host = await prepared(ways, way, "b", fill=fill)
    archive = await host.connection.fetch_snapshot("s")
    assert len(archive) > 40 << 20
    await host.connection.put_snapshot("again", archive)
    await host.connection.restore_snapshot("b", "again")
    assert (await host.run("sha256sum -c sum", "b")).exit_code == 0


async def test_what_is_no_archive_is_refused_at_once(ways: Ways, way: str) -> None:
    host = await ways.start(way, "a")
    for garbage in (b"", b"garbage", bytes(10240), os.urandom(10240)):
        with pytest.raises(SlotLostError, match="no archive"):
            await host.connection.put_snapshot("s", garbage)
        with pytest.raises(SlotLostError, match="there is no snapshot"):
            await host.connection.restore_snapshot("a", "s")
    assert (await host.run("echo well")).stdout.text() == "well\n"


async def test_an_archive_that_turns_out_broken_costs_only_the_slot(ways: Ways, way: str) -> None:
    host = await prepared(ways, way, "b", "c", fill="head -c 1M /dev/urandom > file")
    archive = await host.connection.fetch_snapshot("s")
    await host.connection.put_snapshot("cut", archive[: 512 * 20])
    with pytest.raises(SlotLostError, match="unpack: this is no archive"):
        await host.connection.restore_snapshot("b", "cut")
    with pytest.raises(SlotLostError):
        await host.run("true", "b")
    await host.connection.restore_snapshot("c", "s")


async def test_a_snapshot_without_room_in_the_slot_costs_only_the_slot(ways: Ways) -> None:
    source = await prepared(ways, "copy", fill="head -c 30M /dev/urandom > file")
    archive = await source.connection.fetch_snapshot("s")
    for way in ("overlay", "copy"):
        small = await ways.start(way, "a", "b", disk_mb=8)
        await small.connection.put_snapshot("s", archive)
        with pytest.raises(SlotLostError, match="No space left"):
            await small.connection.restore_snapshot("a", "s")
        assert (await small.run("echo well", "b")).stdout.text() == "well\n"


# --- Faults ---------------------------------------------------------------------------------------


def mounts_of_this_machine() -> list[str]:
    """All but those of containers, which may come and go."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "docker" not in line]


def helper_of(host: RunningHost) -> int:
    """The process that holds the mounts: the one child of the server's that is a copy of it."""
    command = Path(f"/proc/{host.process.pid}/cmdline").read_bytes()
    children = [
        pid
        for pid in descendants_of(host.process.pid)
        if Path(f"/proc/{pid}/cmdline").read_bytes() == command
    ]
    assert len(children) == 1
    return children[0]


async def test_nothing_is_mounted_on_the_machine_and_all_of_it_goes_with_the_server(
    ways: Ways,
) -> None:
    before = mounts_of_this_machine()
    for end in ("close", "kill"):
        host = await prepared(ways, "overlay", "b")
        await host.connection.restore_snapshot("b", "s")
        family = host.family()
        assert mounts_of_this_machine() == before
        if end == "close":
            await host.connection.close()
        else:
            host.process.kill()
        assert await all_gone(family)
        assert mounts_of_this_machine() == before


async def test_when_the_helper_is_killed_members_live_on_and_another_takes_its_place(
    ways: Ways,
) -> None:
    host = await prepared(ways, "overlay", "b", "c", "d")
    await host.connection.restore_snapshot("b", "s")
    helper = helper_of(host)
    os.kill(helper, 9)
    assert await until(lambda: not Path(f"/proc/{helper}/ns").exists())
    assert await content(host, "file", "b") == b"hi\n"
    with pytest.raises(SlotLostError, match="the helper for mounts died"):
        await host.connection.restore_snapshot("c", "s")
    await host.connection.take_snapshot("b", "next")
    await host.connection.restore_snapshot("d", "next")
    assert await content(host, "file", "d") == b"hi\n"
    assert helper_of(host) != helper


@asynccontextmanager
async def faulty_host(tmp_path: Path, fault: str) -> AsyncIterator[RunningHost]:
    """A host whose helper for mounts behaves as the statements in `fault` have it."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    program = tmp_path / "server.py"
    package = "agentenv_backends.sandboxd"
    program.write_text(
        f"from {package}.mounts import Mounts\nfrom {package}.main import main\n{fault}\nmain()\n"
    )
    host = await launch(program, disk_mb=64)
    try:
        yield host
    finally:
        await host.connection.close()
        host.process.wait()


REFUSE = """
def refuse(*_, **__):
    raise OSError("the kernel says no")
Mounts.{what} = refuse
"""
STOP_ONCE_FROZEN = """
import os, signal
freeze = Mounts.freeze
def stop_once_frozen(*args, **options):
    size = freeze(*args, **options)
    os.kill(os.getpid(), signal.SIGSTOP)
    return size
Mounts.freeze = stop_once_frozen
"""


@pytest.mark.parametrize("what", ["freeze", "restore", "trial"])
async def test_where_the_kernel_refuses_to_mount_copies_are_made(what: str, tmp_path: Path) -> None:
    async with faulty_host(tmp_path, REFUSE.format(what=what)) as host:
        assert host.facts.snapshot == ("copy" if what == "trial" else "overlay")
        for slot in "abcd":
            await host.connection.open_slot(slot)
        await host.run(FILL)
        expected = await listing(host, "a")
        await host.connection.take_snapshot("a", "s")
        await asyncio.gather(*(host.connection.restore_snapshot(slot, "s") for slot in "bcd"))
        for slot in "bcd":
            assert await listing(host, slot) == expected


async def test_a_helper_short_of_descriptors_harms_nothing(ways: Ways) -> None:
    host = await prepared(ways, "overlay", "b", "c")
    helper = helper_of(host)
    limits = resource.prlimit(helper, resource.RLIMIT_NOFILE)
    resource.prlimit(helper, resource.RLIMIT_NOFILE, (7, limits[1]))
    with pytest.raises(SlotLostError, match="Too many open files"):
        await host.connection.restore_snapshot("b", "s")
    resource.prlimit(helper, resource.RLIMIT_NOFILE, limits)
    await host.connection.restore_snapshot("c", "s")
    assert await content(host, "file", "c") == b"hi\n"
    assert (await host.run("echo well", "b")).stdout.text() == "well\n"


async def test_a_slot_that_dies_while_it_is_restored_harms_no_other(ways: Ways, way: str) -> None:
    slots = [str(number) for number in range(12)]
    host = await prepared(ways, way, *slots, fill="head -c 5M /dev/urandom > file")
    archive = await host.connection.fetch_snapshot("s")
    await host.connection.put_snapshot("archive", archive)
    restores = [
        asyncio.create_task(host.connection.restore_snapshot(slot, name))
        for slot, name in zip(slots, ["s", "archive"] * 6, strict=True)
    ]
    victims = ("0", "1", "6", "7")
    await asyncio.gather(*(host.connection.close_slot(slot) for slot in victims))
    results = await asyncio.gather(*restores, return_exceptions=True)
    for slot, result in zip(slots, results, strict=True):
        if slot not in victims:
            assert result is None, result
            assert (await host.run("stat -c %s file", slot)).stdout.text() == "5242880\n"
    with pytest.raises(SlotLostError):
        await host.connection.restore_snapshot("0", "s")


async def test_a_slot_that_dies_while_it_is_frozen_leaves_no_mount(tmp_path: Path) -> None:
    async with faulty_host(tmp_path, STOP_ONCE_FROZEN) as host:
        await host.connection.open_slot("a")
        taken = asyncio.create_task(host.connection.take_snapshot("a", "s"))
        assert await until(lambda: trees_of(host) == 1)
        await host.connection.close_slot("a")
        os.kill(helper_of(host), signal.SIGCONT)
        with pytest.raises(SlotLostError):
            await taken
        assert await until(lambda: trees_of(host) == 0)


def trees_of(host: RunningHost) -> int:
    """Mounts of snapshots that the helper holds; none before it has begun."""
    try:
        lines = Path(f"/proc/{helper_of(host)}/mountinfo").read_text().splitlines()
    except AssertionError:
        return 0
    return len([line for line in lines if " /tmp/tree-" in line])


async def test_a_withdrawn_snapshot_is_not_kept(ways: Ways, way: str) -> None:
    host = await ways.start(way, "a", "b")
    await host.run("head -c 5M /dev/urandom > file")
    taken = asyncio.create_task(host.connection.take_snapshot("a", "s"))
    await asyncio.sleep(0)  # it has asked, and no answer can have been heard yet
    taken.cancel()
    await asyncio.wait({taken})
    assert taken.cancelled()
    await host.run("true")
    with pytest.raises(SlotLostError, match="there is no snapshot"):
        await host.connection.restore_snapshot("b", "s")
    await host.connection.take_snapshot("a", "s")
