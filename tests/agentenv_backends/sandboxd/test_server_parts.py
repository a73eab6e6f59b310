"""The small parts of the server, each by itself."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv_backends.sandboxd import bwrap, cgroups, leftovers, packing
from agentenv_backends.sandboxd.launcher import Launcher
from agentenv_backends.sandboxd.outbox import Outbox
from agentenv_backends.sandboxd.reading import ReadingBudget
from agentenv_backends.sandboxd.settings import HostFacts, HostSettings
from agentenv_backends.sandboxd.slot_capture import Capture
from agentenv_backends.sandboxd.slot_init import MAX_REMEMBERED, Memory
from agentenv_backends.sandboxd.slot_processes import PidNamespace, descendants_of
from agentenv_backends.sandboxd.trees import remove_tree
from tests.processes import Process, child
from tests.waiting import WITHIN_S, eventually

PACKAGE = Path(packing.__file__).parent


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(0, 60))
def test_a_capture_keeps_the_first_and_last_bytes_of_any_stream(
    chunks: list[bytes], cap: int
) -> None:
    capture = Capture(cap)
    for chunk in chunks:
        capture.add(chunk)
    whole = b"".join(chunks)
    head, tail = capture.parts()
    assert capture.total == len(whole)
    assert len(head) + len(tail) == min(cap, len(whole))
    assert whole.startswith(head)
    assert whole.endswith(tail)
    if len(whole) <= cap:
        assert head + tail == whole


def test_a_memory_of_answers_is_bounded_and_keeps_the_latest() -> None:
    memory = Memory()
    for number in range(1000):
        memory.keep(number, (b"{}", bytes(10_000), 0))
    assert memory.find(0) is None
    assert memory.find(999) == (b"{}", bytes(10_000), 0)
    assert len(memory._answers) <= MAX_REMEMBERED
    memory.keep("large", (b"{}", bytes(900_000), 0))
    assert memory.find("large") is not None
    memory.keep("larger", (b"{}", bytes(2_000_000), 0))
    answer = memory.find("larger")
    assert answer is not None
    assert b"no longer kept" in answer[0]


def test_killing_everything_is_refused_to_all_but_pid_1() -> None:
    assert os.getpid() != 1
    with pytest.raises(RuntimeError, match="pid 1"):
        PidNamespace().kill_all()


def test_descendants_are_found_without_those_below_a_spared_one() -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '100']);"
        " print(p.pid, flush=True); sys.stdin.read(); p.kill(); p.wait()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with child([sys.executable, "-c", code], **pipes) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        assert {parent.pid, grandchild} <= set(descendants_of(os.getpid()))
        assert not {parent.pid, grandchild} & set(descendants_of(os.getpid(), spare={parent.pid}))
        parent.communicate(b"")


def test_an_outbox_sends_everything_in_order_through_a_narrow_stream() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        outbox = Outbox(ours.fileno())
        pieces = [os.urandom(size) for size in (1, 300_000, 0, 5, 1_000_000, *[10] * 200)]
        for piece in pieces:
            outbox.put(piece)
        got = b""
        while not outbox.flush() or len(got) < sum(map(len, pieces)):
            got += theirs.recv(1 << 20)
    assert got == b"".join(pieces)
    assert outbox.size == 0


def test_names_tell_their_owner_and_only_dead_owners_are_swept(tmp_path: Path) -> None:
    me = leftovers.owner_of_this_process()
    dead = leftovers.Owner(me.pid, me.start_time - 1)
    names = [
        leftovers.name_for("run-1", me, "slot1"),
        leftovers.name_for("run-1", dead, "slot1"),
        "agentenv-run-1",
        "other-1-2-3",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    assert leftovers.owner_of(names[0]) == me
    assert leftovers.abandoned(str(tmp_path)) == [str(tmp_path / names[1])]
    assert leftovers.abandoned(str(tmp_path / "missing")) == []


def test_a_link_with_a_dead_owners_name_is_neither_swept_nor_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    (outside / "below").chmod(0o755)
    name = leftovers.name_for("run-1", leftovers.Owner(os.getpid(), 1), "slots")
    link = tmp_path / name
    link.symlink_to(outside)
    assert leftovers.abandoned(str(tmp_path)) == []
    assert not remove_tree(str(link))
    assert (outside / "below").stat().st_mode & 0o777 == 0o755
    assert link.is_symlink()


def test_a_slot_that_gets_no_descriptors_gives_back_what_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher = Launcher(HostSettings(run_id="r", isolation="none"))

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    try:
        monkeypatch.setattr(os, "pipe2", none_left)
        with pytest.raises(OSError, match="Too many"):
            launcher.start()
        assert list(Path(launcher.folders).iterdir()) == []
    finally:
        launcher.close()


@pytest.mark.sandbox
@pytest.mark.slow
async def test_a_slot_that_is_killed_as_it_starts_leaves_nothing_also_without_cgroups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cgroups, "find", lambda *_: None)
    mark = f"/of-{uuid.uuid4().hex}"
    launcher = Launcher(HostSettings(run_id="r", isolation="bubblewrap", folders=(mark,)))

    def left() -> list[int]:
        pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [pid for pid in pids if mark in Process(pid, 0).command]

    try:
        for number in range(200):
            process = launcher.start()
            await asyncio.sleep(number * 3e-5)
            process.kill()
            os.waitpid(process.pid, 0)
            launcher.finish(process)
        await eventually(lambda: not left(), lambda: f"none of them is left: {left()}")
    finally:
        for pid in left():
            os.kill(pid, signal.SIGKILL)
        launcher.close()


def test_a_limit_is_never_raised_above_what_the_server_itself_may_have() -> None:
    code = (
        "import resource as r; from agentenv_backends.sandboxd.launcher import _limit;"
        "r.setrlimit(r.RLIMIT_NOFILE, (200, 200)); _limit(r.RLIMIT_NOFILE, 1000);"
        "print(*r.getrlimit(r.RLIMIT_NOFILE)); _limit(r.RLIMIT_NOFILE, 100);"
        "print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert shown.stdout.split() == [b"200", b"200", b"100", b"100"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_a_folder_of_somebody_else_is_not_swept_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / leftovers.name_for("run-1", leftovers.Owner(os.getpid(), 1), "slots")
    folder.mkdir()
    assert leftovers.abandoned(str(tmp_path)) == [str(folder)]
    os.chown(folder, 65534, 65534)
    assert leftovers.abandoned(str(tmp_path)) == []


def test_a_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    outside.chmod(0o755)
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "link").symlink_to(outside)
    (tree / "a" / "b").chmod(0)
    (tree / "a").chmod(0)
    assert remove_tree(str(tree))
    assert (outside / "kept").exists()


def test_the_zip_file_is_the_same_each_time_and_holds_no_driver_code() -> None:
    packing.sandboxd_zipapp.cache_clear()
    first = packing.sandboxd_zipapp()
    packing.sandboxd_zipapp.cache_clear()
    assert packing.sandboxd_zipapp() == first
    names = zipfile.ZipFile(io.BytesIO(first)).namelist()
    assert "__main__.py" in names
    assert "agentenv_sandboxd/packing.py" not in names


def test_the_server_imports_nothing_but_itself_and_the_standard_library() -> None:
    for path in PACKAGE.glob("*.py"):
        modules = re.findall(r"^\s*(?:from|import) ([.\w]+)", path.read_text(), re.MULTILINE)
        foreign = {name for name in modules if not name.startswith(".")}
        assert {name.split(".")[0] for name in foreign} <= sys.stdlib_module_names, path.name


@pytest.mark.parametrize("arguments", [[], ["--stdio"], ["--help"]])
def test_the_server_says_what_it_wants_where_it_cannot_serve(
    tmp_path: Path, arguments: list[str]
) -> None:
    pyz = packing.write_zipapp(tmp_path / "server.pyz")
    done = subprocess.run(
        [sys.executable, "-I", str(pyz), *arguments],
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "frames on a socket at descriptor 0" in done.stderr


def test_settings_survive_the_wire_and_refuse_what_cannot_be() -> None:
    settings = HostSettings(run_id="r", readonly_paths=("/a",), cpus=0.5, require=("memory",))
    assert HostSettings.from_json(settings.to_json()) == settings
    facts = HostFacts("none", "/w", "6.1", "3.11", "3.11", gives_up=("all",))
    assert HostFacts.from_json(facts.to_json()) == facts
    for wrong in (
        {"isolation": "chroot"},
        {"run_id": ""},
        {"run_id": "../x"},
        {"memory_mb": 1},
        {"require": ("luck",)},
        {"lease_s": 0},
        {"cpus": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            HostSettings(**{"run_id": "r", **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="surprise"):
        HostSettings.from_json({"run_id": "r", "surprise": 1})


def test_the_command_line_confines_in_the_order_that_counts() -> None:
    arguments = bwrap.command_line(
        "bwrap", HostSettings(run_id="r", disk_mb=7), ["--ro-bind", "/usr"], {"/etc/passwd": 5}, 6
    )
    text = " ".join(arguments)
    for part in (
        "--unshare-all --unshare-user --disable-userns --as-pid-1",
        "--die-with-parent --new-session --cap-drop ALL --clearenv",
        "--proc /proc --ro-bind /proc/sys /proc/sys",
        f"--size {7 << 20} --tmpfs /workspace --remount-ro /",
        "--perms 0644 --file 5 /etc/passwd",
        "--seccomp 6 --",
    ):
        assert part in text
    assert "--share-net" not in text
    assert (
        text.index("--dev /dev") < text.index("--remount-ro /dev") < text.index("--remount-ro / ")
    )
    assert text.index("--ro-bind /usr") < text.index("--file 5") < text.index("--remount-ro / ")
    assert "--share-net" in bwrap.command_line(
        "bwrap", HostSettings(run_id="r", allow_network=True), [], {}, 6
    )


class UnfinishedSlot:
    """What a reading budget looks at."""

    def __init__(self, descriptor: int) -> None:
        self.state = "serving"
        self.writing = False
        self.reader = SimpleNamespace(pending=0)
        self.process = SimpleNamespace(stream=SimpleNamespace(fileno=lambda: descriptor))


def test_beyond_the_budget_one_slot_is_read_at_a_time_and_each_gets_its_turn() -> None:
    watched: dict[int, int] = {}
    loop = SimpleNamespace(modify=watched.__setitem__)
    budget = ReadingBudget(loop, limit=100)  # type: ignore[arg-type]
    slots = [UnfinishedSlot(number) for number in range(3)]

    def grow(number: int, pending: int) -> None:
        slots[number].reader.pending = pending
        budget.update(slots[number])  # type: ignore[arg-type]

    def paused() -> list[int]:
        return sorted(number for number, events in watched.items() if events == 0)

    for number in range(3):
        grow(number, 60)
    assert paused() == [1, 2]
    slots[0].state = "ending"
    budget.update(slots[0])  # type: ignore[arg-type]
    assert paused() == [2], "the death of the one that was read must not stop the others"
    grow(1, 0)
    assert paused() == []


@pytest.fixture
def second_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version 2 hierarchy made of plain files, in which new groups come with theirs."""
    files = (
        "cgroup.procs",
        "pids.max",
        "memory.max",
        "memory.swap.max",
        "cpu.max",
        "memory.events",
    )

    def make(path: str, mode: int = 0o777) -> None:
        original(path, mode)
        for name in files:
            Path(path, name).write_text(
                "low 0\noom 3\noom_kill 1\n" if name == "memory.events" else ""
            )

    def remove(path: str) -> None:
        for name in files:
            Path(path, name).unlink(missing_ok=True)
        rmdir(path)

    def write(path: str, value: str) -> None:
        if path.endswith("subtree_control"):
            value = value.replace("+", "")  # the kernel shows what is on
        original_write(path, value)

    original, rmdir, original_write = os.mkdir, os.rmdir, cgroups._write
    monkeypatch.setattr(cgroups, "_write", write)
    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(os, "rmdir", remove)
    monkeypatch.setattr(cgroups, "_mounts", lambda: [("cgroup2", str(tmp_path), ["rw"])])
    monkeypatch.setattr(cgroups, "_own_paths", lambda: {"": "/own"})
    make(str(tmp_path / "own"))
    for folder in (tmp_path, tmp_path / "own"):
        (folder / "cgroup.controllers").write_text("cpu io memory pids\n")
        (folder / "cgroup.subtree_control").write_text("")
    return tmp_path / "own"


def test_version_2_groups_are_made_below_our_own_with_the_limits_asked_for(
    second_version: Path,
) -> None:
    limits = cgroups.Limits(processes=9, memory_bytes=1 << 20, cpus=0.5)
    (second_version / "cgroup.subtree_control").write_text("")
    found = cgroups.find(limits, "agentenv-r-1-1-")
    assert found is not None
    assert found.version == 2
    group = found.create("agentenv-r-1-1-slot1", limits)
    folder = second_version / "agentenv-r-1-1-slot1"
    assert (folder / "pids.max").read_text() == "9"
    assert (folder / "memory.max").read_text() == str(1 << 20)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert not group.note_oom_kills()
    (folder / "memory.events").write_text("low 0\noom 4\noom_kill 2\n")
    assert group.note_oom_kills()
    assert not group.note_oom_kills()
    assert group.remove()
    assert not folder.exists()


def test_a_group_is_removed_with_what_still_runs_in_it() -> None:
    limits = cgroups.Limits(processes=9, memory_bytes=1 << 25, cpus=None)
    name = leftovers.name_for("test", leftovers.owner_of_this_process(), "")
    found = cgroups.find(limits, name)
    if found is None:
        pytest.skip("no cgroups can be made here")
    group = found.create(name + "slot1", limits)
    with child(["sleep", "1000"]) as left:
        for path in group.join_files:
            Path(path).write_text(str(left.pid))
        assert group.remove()
        assert left.wait(WITHIN_S) == -signal.SIGKILL
    assert not any(Path(path).parent.exists() for path in group.join_files)


def test_without_any_writable_hierarchy_there_are_no_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        cgroups, "_mounts", lambda: [("cgroup2", "/nowhere", []), ("cgroup", "/no", ["pids"])]
    )
    assert (
        cgroups.find(cgroups.Limits(processes=9, memory_bytes=1, cpus=None), "agentenv-r-1-1-")
        is None
    )
