"""Archives of workspaces: what goes in comes out, and nothing that somebody forged reaches outside of the folder."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv_backends.sandboxd import slot_snapshot
from agentenv_backends.sandboxd.refusal import RefusedError
from agentenv_backends.sandboxd.slot_snapshot import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = 1 << 26


@contextmanager
def folder_at(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@contextmanager
def memory_file(content: bytes = b"") -> Iterator[int]:
    descriptor = os.memfd_create("archive")
    os.write(descriptor, content)
    yield descriptor
    os.close(descriptor)


def packed(path: Path, room: int = ROOM) -> bytes:
    with folder_at(path) as folder, memory_file() as target:
        pack(folder, target, room)
        return os.pread(target, ROOM, 0)


def unpacked(archive: bytes, path: Path) -> Path:
    path.mkdir()
    with folder_at(path) as folder, memory_file(archive) as source:
        unpack(folder, source)
    return path


def refused(archive: bytes, path: Path) -> str:
    with pytest.raises(RefusedError) as caught:
        unpacked(archive, path)
    return caught.value.message


def tar(*members: tarfile.TarInfo, content: bytes = b"content") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if member.isreg():
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, to, 0o6777
    return member


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(b"text")
    (tree / "a" / "b" / "same").hardlink_to(tree / "a" / "file")
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "linked again").hardlink_to(
        tree / "link",
    )
    os.mkfifo(tree / "pipe")
    return tree


# --- What comes out -------------------------------------------------------------------------------


def test_an_unpacked_tree_packs_to_the_same_archive(tree: Path, tmp_path: Path) -> None:
    os.utime(tree / "a" / "file", ns=(5, 123456789987654321))
    os.utime(tree, ns=(5, -123456789))
    (tree / "a" / "b").chmod(0o500)
    archive = packed(tree)
    copy = unpacked(archive, tmp_path / "copy")
    assert packed(copy) == archive
    assert (copy / "a" / "file").stat().st_mtime_ns == 123456789987654321
    assert copy.stat().st_mtime_ns == -123456789
    assert (copy / "a" / "file").samefile(copy / "a" / "b" / "same")
    assert (copy / "link").readlink() == Path("/etc/passwd")
    assert stat.S_ISFIFO((copy / "pipe").stat().st_mode)


def test_folders_that_their_owner_has_closed_to_itself_are_packed_and_stay_closed(
    tmp_path: Path,
) -> None:
    top = tmp_path / "top"
    for name, mode in (("shut", 0o000), ("no_pass", 0o600), ("no_look", 0o300)):
        below = top / name / "below"
        below.mkdir(parents=True)
        (below / "file").write_text("found")
        below.chmod(0o000)
        (top / name).chmod(mode)
    with folder_at(top) as folder, memory_file() as target:
        if os.getuid() == 0:
            owner = 65534
            for path in (top, *top.rglob("*")):
                os.chown(path, owner, owner)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.setresuid(owner, owner, owner)
                    pack(folder, target, ROOM)
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
        else:
            pack(folder, target, ROOM)
        archive = io.BytesIO(os.pread(target, ROOM, 0))
    with tarfile.open(fileobj=archive) as tar_file:
        modes = {member.name: member.mode for member in tar_file}
    assert {name for name in modes if name.endswith("file")} == {
        f"{name}/below/file" for name in ("shut", "no_pass", "no_look")
    }
    assert (modes["shut"], modes["no_pass"], modes["no_look/below"]) == (0o000, 0o600, 0o000)
    assert stat.S_IMODE((top / "shut").stat().st_mode) == 0o000
    for path in (top / "shut", top / "no_pass", top / "no_look"):
        path.chmod(0o700)
        assert stat.S_IMODE((path / "below").stat().st_mode) == 0o000
        (path / "below").chmod(0o700)


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: not set(name) & {0, 47} and name not in (b".", b"..")
)


@given(st.dictionaries(NAMES, st.none() | st.binary(max_size=70_000), max_size=5))
def test_any_name_and_content_survives(files: dict[bytes, bytes | None]) -> None:
    with tempfile.TemporaryDirectory() as top:
        tree = Path(top) / "tree"
        tree.mkdir()
        for name, content in files.items():
            if content is None:
                (tree / os.fsdecode(name)).mkdir()
            else:
                (tree / os.fsdecode(name)).write_bytes(content)
        copy = unpacked(packed(tree), Path(top) / "copy")
        found = {os.fsencode(path.name): path for path in copy.iterdir()}
        assert set(found) == set(files)
        for name, content in files.items():
            assert content is None or found[name].read_bytes() == content


def test_zeros_become_holes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as file:
        file.seek(16 << 20)
        file.write(b"end")
    info = (unpacked(packed(tree), tmp_path / "copy") / "sparse").stat()
    assert info.st_size == (16 << 20) + 3
    assert info.st_blocks * 512 < 1 << 20


def test_sockets_and_devices_are_left_out(tmp_path: Path) -> None:
    import socket

    tree = tmp_path / "tree"
    tree.mkdir()
    with folder_at(tree) as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{folder}/socket")
    copy = unpacked(packed(tree), tmp_path / "copy")
    assert list(copy.iterdir()) == []


def test_what_was_there_before_is_gone(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "a" / "mine").mkdir(parents=True)
    (other / "link").write_bytes(b"a file")
    archive = packed(tree)
    with folder_at(other) as folder, memory_file(archive) as source:
        unpack(folder, source)
    assert packed(other) == archive


def test_set_user_id_bits_are_not_handed_on(tmp_path: Path) -> None:
    copy = unpacked(tar(entry("file"), entry("folder", tarfile.DIRTYPE)), tmp_path / "copy")
    assert stat.S_IMODE((copy / "file").stat().st_mode) == 0o777
    assert stat.S_IMODE((copy / "folder").stat().st_mode) == 0o2777


def test_packing_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"the secret")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "folder").symlink_to(outside)
    (tree / "file").symlink_to(outside / "secret")
    assert b"the secret" not in packed(tree)


# --- Bounds ---------------------------------------------------------------------------------------


def test_what_is_too_much_to_pack_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "big").write_bytes(bytes(100_000))
    with pytest.raises(RefusedError, match="over 50000 bytes as an archive"):
        packed(tree, 50_000)
    monkeypatch.setattr(slot_snapshot, "MAX_ENTRIES", 4)
    with pytest.raises(RefusedError, match="more than 4 files"):
        packed(tree)


def test_too_deep_a_tree_is_refused_rather_than_cut(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    descriptor = os.open(tree, os.O_RDONLY)
    for _ in range(slot_snapshot.MAX_DEPTH + 2):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    with pytest.raises(RefusedError, match="folders deeper than"):
        packed(tree)
    shutil.rmtree(tree)


# --- What was forged ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        [entry("../escaped")],
        [entry("/tmp/escaped")],
        [entry("a/../../escaped")],
        [entry("a", tarfile.SYMTYPE, ".."), entry("a/escaped")],
        [entry("a", tarfile.SYMTYPE, "../outside"), entry("a")],
        [entry("a", tarfile.SYMTYPE, ".."), entry("a/escaped", tarfile.DIRTYPE)],
        [entry("a", tarfile.LNKTYPE, "../outside")],
        [entry("a", tarfile.LNKTYPE, "/etc/passwd")],
        [entry("l", tarfile.SYMTYPE, ".."), entry("a", tarfile.LNKTYPE, "l/outside")],
        [entry("a", tarfile.CHRTYPE)],
        [entry("a", tarfile.BLKTYPE)],
        [entry("a", tarfile.CONTTYPE), entry("./")],
        [entry("a"), entry("a")],
        [entry("a"), entry("a/b")],
        [entry("no/parent")],
        [entry(".", tarfile.REGTYPE)],
        [entry("")],
        [entry("x" * 300)],
        [entry("d/" * 300 + "x")],
    ],
)
def test_an_entry_that_leads_elsewhere_is_refused(
    members: list[tarfile.TarInfo], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    refused(tar(*members), tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "outside"]
    assert outside.read_bytes() == b"untouched"
    assert outside.stat().st_nlink == 1
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


def test_a_file_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    member = entry("sparse")
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "sparse",
        "GNU.sparse.realsize": str(1 << 60),
    }
    content = b"1\n%d\n%d\n" % ((1 << 60) - 512, 512)
    content += bytes(512 - len(content)) + bytes(512)
    assert "no archive" in refused(tar(member, content=content), tmp_path / "copy")
    assert not (tmp_path / "copy" / "sparse").exists()


def test_an_archive_that_ends_early_is_refused(tmp_path: Path) -> None:
    archive = tar(entry("file"), content=bytes(range(256)) * 100)
    assert "no archive" in refused(archive[:8192], tmp_path / "copy")


@given(st.data())
def test_a_damaged_archive_is_refused_or_unpacked_but_stays_inside(data: st.DataObject) -> None:
    members = [entry("d", tarfile.DIRTYPE), entry("d/f"), entry("l", tarfile.SYMTYPE, "../d")]
    archive = bytearray(tar(*members))
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, 4 * 512))
        archive[position] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as top:
        path = Path(top) / "copy"
        with suppress(RefusedError):
            unpacked(bytes(archive), path)
        assert [each.name for each in Path(top).iterdir()] == ["copy"]


@given(st.binary(max_size=2000))
def test_noise_is_refused_or_empty(noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as top:
        try:
            copy = unpacked(noise, Path(top) / "copy")
        except RefusedError:
            return
        assert list(copy.iterdir()) == []
