"""Snapshots on file systems whose files can share blocks: the same as a copy, without the copying."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.sandboxd import reflinks
from agentenv_backends.sandboxd.packing import write_zipapp
from agentenv_backends.sandboxd.slot_snapshot import pack, unpack
from tests.agentenv_backends.sandboxd.harness import launch
from tests.agentenv_backends.sandboxd.test_slot_snapshot import folder_at

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = 1 << 28
SIZE_MB = 400
_REQUIRED = os.environ.get("AGENTENV_REQUIRE_DOCKER") == "1"
"""Set in CI, where a test that would skip fails."""


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Path]:
    """A file system of this kind in a file, mounted; skips, or fails, where that cannot be."""
    image, point = folder / "image", folder / "mounted"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_MB << 20)
    try:
        make = [f"mkfs.{kind}", "-q", str(image)]
        subprocess.run(make, check=True, capture_output=True, timeout=60)
        mount = ["mount", "-o", "loop", str(image), str(point)]
        subprocess.run(mount, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        reason = f"no {kind} can be mounted here: {error} {said.decode(errors='replace')}"
        if _REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with mounted(request.param, tmp_path_factory.mktemp(request.param)) as point:
        yield point


def used(place: Path) -> int:
    os.sync()
    usage = os.statvfs(place)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


@contextmanager
def archive_of(tree: Path, place: Path) -> Iterator[int]:
    archive = reflinks.nameless_file(str(place))
    with folder_at(tree) as folder:
        pack(folder, archive, ROOM)
    yield archive
    os.close(archive)


def fill(tree: Path) -> None:
    tree.mkdir()
    for number, size in enumerate((0, 1, 4095, 4096, 65535, 65536, 65537, 70000, 3 << 20)):
        (tree / f"f{number}").write_bytes(os.urandom(size))
    (tree / "f8").chmod(0o751)
    os.utime(tree / "f8", ns=(10**18 + 1, 10**18 + 1))
    os.setxattr(tree / "f8", "user.note", b"kept")
    os.link(tree / "f8", tree / "again")
    (tree / "sparse").touch()
    os.truncate(tree / "sparse", 5 << 20)


def contents(tree: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tree.iterdir()}


def test_a_tree_comes_back_as_it_was_and_shares_its_blocks(place: Path) -> None:
    tree = place / "tree"
    fill(tree)
    (tree / "large").write_bytes(os.urandom(30 << 20))
    before = used(place)
    with archive_of(tree, place) as archive:
        for number in range(4):
            copy = place / f"copy-{number}"
            copy.mkdir()
            with folder_at(copy) as folder:
                unpack(folder, archive)
            assert contents(copy) == contents(tree)
            info = (copy / "f8").stat()
            assert (info.st_mode & 0o7777, info.st_nlink, info.st_mtime_ns) == (
                0o751,
                2,
                10**18 + 1,
            )
            assert os.getxattr(copy / "f8", "user.note") == b"kept"
        assert used(place) - before < 30 << 20, "one archive and four copies of over 33 MiB"


def test_no_copy_sees_what_another_writes(place: Path) -> None:
    tree, one, two = place / "source", place / "one", place / "two"
    fill(tree)
    original = contents(tree)
    with archive_of(tree, place) as archive:
        with (tree / "f8").open("r+b") as file:
            file.write(b"later")
        for copy in (one, two):
            copy.mkdir()
            with folder_at(copy) as folder:
                unpack(folder, archive)
            with (copy / "f8").open("r+b") as file:
                file.write(bytes(copy.name, "ascii"))
    shown = contents(two)
    assert shown["f8"] == b"two" + original["f8"][3:]
    assert shown["f7"] == original["f7"]


def test_an_archive_is_the_same_tar_for_those_who_cannot_share(place: Path, tmp_path: Path) -> None:
    tree = place / "for-others"
    fill(tree)
    with archive_of(tree, place) as archive:
        content = os.pread(archive, ROOM, 0)
    elsewhere = os.memfd_create("archive")
    os.write(elsewhere, content)
    copy = tmp_path / "copy"
    copy.mkdir()
    with folder_at(copy) as folder:
        unpack(folder, elsewhere)
    os.close(elsewhere)
    assert contents(copy) == contents(tree)


def test_files_in_memory_share_nothing() -> None:
    assert not reflinks.can_share("/dev/shm")


@pytest.mark.sandbox
async def test_a_host_restores_its_slots_that_way(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyz = write_zipapp(tmp_path_factory.mktemp("server") / "sandboxd.pyz")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    host = await launch(pyz, isolation="none")
    try:
        connection = host.connection
        assert connection.facts is not None
        assert connection.facts.snapshot == "reflink"
        for slot in ("source", "one", "two"):
            await connection.open_slot(slot)
        await host.run("head -c 20000000 /dev/urandom > large; echo small > small", slot="source")
        before = used(place)
        await connection.take_snapshot("source", "n")
        for slot in ("one", "two"):
            await connection.restore_snapshot(slot, "n")
            await host.run("echo mine >> small; echo mine >> large", slot=slot)
        sums = [await host.run("tail -c +1 small", slot=slot) for slot in ("source", "one")]
        assert [result.stdout.text() for result in sums] == ["small\n", "small\nmine\n"]
        assert used(place) - before < 10 << 20
    finally:
        await connection.close()
        host.process.wait()
