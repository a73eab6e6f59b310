"""File operations on a plain folder: no sandbox is needed to show that nothing outside can be reached."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.sandboxd.refusal import RefusedError
from agentenv_backends.sandboxd.slot_archive import pack
from agentenv_backends.sandboxd.slot_files import Workspace
from tests.processes import child

if TYPE_CHECKING:
    from collections.abc import Callable


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(workspace: Workspace, path: str, offset: int = 0, limit: int = 1000) -> bytes:
    return workspace.read({"path": path, "offset": offset, "max": limit})[1]


def write(workspace: Workspace, path: str, content: bytes, *, append: bool = False) -> None:
    workspace.write({"path": path, "append": append}, content)


def listing(
    workspace: Workspace, path: str = ".", *, recursive: bool = True, limit: int = 1000
) -> tuple[list[tuple[str, str]], bool]:
    header, body = workspace.list_folder({"path": path, "recursive": recursive, "max": limit})
    return [(row[0], row[1]) for row in json.loads(body)], json.loads(header)["truncated"]


def refusal(operation: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(RefusedError) as caught:
        operation(*arguments, **options)
    return caught.value.kind


def test_a_file_is_written_with_its_parents_and_read_back(workspace: Workspace, root: Path) -> None:
    write(workspace, "a/b/c.bin", b"\0\xff\n")
    assert read(workspace, "a/b/c.bin") == b"\0\xff\n"
    assert read(workspace, f"{root}/a/./b//c.bin") == b"\0\xff\n"
    assert read(workspace, "a/b/c.bin", offset=1, limit=1) == b"\xff"
    assert names(root / "a" / "b") == ["c.bin"]


def test_appending_adds_and_replacing_keeps_the_mode(workspace: Workspace, root: Path) -> None:
    write(workspace, "script", b"one", append=True)
    (root / "script").chmod(0o755)
    write(workspace, "script", b" two", append=True)
    assert read(workspace, "script") == b"one two"
    write(workspace, "script", b"new")
    assert read(workspace, "script") == b"new"
    assert (root / "script").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret",
        "/etc/passwd",
        "a/../../outside/secret",
        "//etc/passwd",
        "..",
        "/",
        "a/b/../../..",
    ],
)
def test_paths_that_lead_outside_are_refused(workspace: Workspace, root: Path, path: str) -> None:
    (root / "a" / "b").mkdir(parents=True)
    assert refusal(read, workspace, path) == "outside_workspace"
    assert refusal(write, workspace, path, b"x") == "outside_workspace"
    assert refusal(listing, workspace, path) == "outside_workspace"


@pytest.mark.parametrize(
    "path", ["~/.ssh/id_rsa", "file:///etc/passwd", "%2e%2e/secret", "..\\secret"]
)
def test_other_spellings_of_outside_are_just_names(workspace: Workspace, path: str) -> None:
    assert refusal(read, workspace, path) == "not_found"


def test_links_inside_are_followed_and_links_outside_are_refused(
    workspace: Workspace, root: Path
) -> None:
    (root / "dir").mkdir()
    (root / "dir" / "file").write_text("inside")
    (root / "relative").symlink_to("dir/file")
    (root / "absolute").symlink_to(root / "dir")
    (root / "out").symlink_to("/etc/passwd")
    (root / "out_dir").symlink_to("../outside")
    (root / "dangling").symlink_to("../outside/new")
    assert read(workspace, "relative") == b"inside"
    assert read(workspace, "absolute/file") == b"inside"
    for path in ("out", "out_dir/secret", "dangling", "dir/../out_dir/secret"):
        assert refusal(read, workspace, path) == "outside_workspace"
        assert refusal(write, workspace, path, b"x") == "outside_workspace"
    assert names(root.parent / "outside") == ["secret"]


def test_writing_through_a_dangling_link_inside_makes_its_target(
    workspace: Workspace, root: Path
) -> None:
    (root / "link").symlink_to("sub/target")
    write(workspace, "link", b"x")
    assert (root / "sub" / "target").read_bytes() == b"x"
    assert (root / "link").is_symlink()


def test_a_ring_of_links_is_refused(workspace: Workspace, root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    assert refusal(read, workspace, "a") == "bad_request"


def test_each_mistake_has_its_own_kind(workspace: Workspace, root: Path) -> None:
    (root / "dir").mkdir()
    (root / "file").write_text("x")
    assert refusal(read, workspace, "missing") == "not_found"
    assert refusal(read, workspace, "dir") == "is_a_directory"
    assert refusal(write, workspace, "dir", b"x") == "is_a_directory"
    assert refusal(write, workspace, ".", b"x") == "is_a_directory"
    assert refusal(read, workspace, "file/x") == "not_a_directory"
    assert refusal(write, workspace, "file/x", b"x") == "not_a_directory"
    assert refusal(listing, workspace, "file") == "not_a_directory"
    assert refusal(read, workspace, "nul\0byte") == "bad_request"
    assert refusal(read, workspace, "") == "bad_request"
    assert refusal(read, workspace, "x" * 256) == "bad_request"
    assert refusal(read, workspace, "x/" * 3000) == "bad_request"


def test_special_files_are_refused_without_waiting(workspace: Workspace, root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        for name in ("fifo", "socket"):
            assert refusal(read, workspace, name) == "not_a_file"
            assert refusal(write, workspace, name, b"x") == "not_a_file"


def test_a_huge_sparse_file_costs_no_more_than_what_is_asked_for(
    workspace: Workspace, root: Path
) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(100 << 30)
    header, content = workspace.read({"path": "sparse", "offset": 0, "max": 10})
    assert json.loads(header)["size"] == 100 << 30
    assert content == bytes(10)
    assert (
        refusal(workspace.read, {"path": "sparse", "offset": 0, "max": 10, "sha256": True})
        == "too_large"
    )
    assert refusal(archive, workspace, "sparse") == "too_large"


def test_odd_names_survive_a_listing(workspace: Workspace, root: Path) -> None:
    odd = [b"new\nline", b"-rf", b"\xff\xfe", b"x" * 255, b"...", "ü".encode()]
    for name in odd:
        os.close(os.open(os.fsencode(root) + b"/" + name, os.O_CREAT))
    entries, truncated = listing(workspace)
    assert sorted(os.fsencode(path) for path, _ in entries) == sorted(odd)
    assert not truncated
    for path, _ in entries:
        assert read(workspace, path) == b""


def test_a_listing_is_in_order_relative_to_the_workspace_and_does_not_follow_links(
    workspace: Workspace, root: Path
) -> None:
    (root / "b" / "c").mkdir(parents=True)
    (root / "b" / "c" / "f").write_text("x")
    (root / "b" / "link").symlink_to("/etc")
    (root / "a").write_text("x")
    os.mkfifo(root / "p")
    everything = [
        ("a", "file"),
        ("b", "directory"),
        ("b/c", "directory"),
        ("b/c/f", "file"),
        ("b/link", "link"),
        ("p", "other"),
    ]
    assert listing(workspace) == (everything, False)
    assert listing(workspace, "b", recursive=False) == (
        [("b/c", "directory"), ("b/link", "link")],
        False,
    )


def test_listings_are_bounded_in_entries_and_depth(workspace: Workspace, root: Path) -> None:
    for number in range(30):
        (root / str(number)).write_text("")
    entries, truncated = listing(workspace, limit=10)
    assert len(entries) == 10
    assert truncated
    deep = "deep/" * 400
    write(workspace, deep + "file", b"x")
    entries, truncated = listing(workspace)
    assert truncated
    assert read(workspace, deep + "file") == b"x"


def archive(
    workspace: Workspace, path: str = ".", max_bytes: int = 1_000_000, max_entries: int = 1000
) -> tuple[int, bytes]:
    header, content = pack(workspace, {"path": path, "max": max_bytes, "max_entries": max_entries})
    return json.loads(header)["entries"], content


def members(content: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(content)) as packed:
        return {member.name: member for member in packed.getmembers()}


def test_an_archive_holds_files_folders_and_links_as_links(
    workspace: Workspace, root: Path
) -> None:
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"content")
    (root / "d" / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "d" / "fifo")
    count, content = archive(workspace)
    found = members(content)
    assert sorted(found) == ["d", "d/f", "d/link"]
    assert count == 3
    assert found["d/link"].issym()
    assert found["d/link"].linkname == "/etc/passwd"
    assert sorted(members(archive(workspace, "d")[1])) == ["f", "link"]
    assert sorted(members(archive(workspace, "d/f")[1])) == ["f"]
    assert archive(workspace)[1] == content
    assert gzip.decompress(content)


def test_archives_are_bounded_in_bytes_and_entries(workspace: Workspace, root: Path) -> None:
    (root / "big").write_bytes(os.urandom(100_000))
    for number in range(20):
        (root / f"f{number}").write_text("")
    assert refusal(archive, workspace, max_bytes=50_000) == "too_large"
    assert refusal(archive, workspace, max_entries=10) == "too_large"
    assert refusal(archive, workspace, "missing") == "not_found"


def test_the_end_of_the_disk_is_its_own_kind_and_leaves_the_old_file(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workspace, "file", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agentenv_backends.sandboxd.slot_files.write_all", full)
    assert refusal(write, workspace, "file", b"new") == "no_space"
    assert refusal(write, workspace, "file", b"new", append=True) == "no_space"
    assert read(workspace, "file") == b"old"
    assert names(root) == ["file"]


SWAP = """
import os, sys
inside, link, path = sys.argv[1:]
print("swapping", flush=True)
while True:
    os.rename(path, inside); os.rename(link, path)
    os.rename(path, link); os.rename(inside, path)
"""


@pytest.mark.slow
def test_swapping_a_folder_for_a_link_never_leads_outside(workspace: Workspace, root: Path) -> None:
    (root / "swapped").mkdir()
    (root / "swapped" / "secret").write_text("inside")
    (root / "link").symlink_to("../outside")
    arguments = [str(root / "parked"), str(root / "link"), str(root / "swapped")]
    swapper = subprocess.Popen([sys.executable, "-c", SWAP, *arguments], stdout=subprocess.PIPE)
    try:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        seen = {attempt(lambda: read(workspace, "swapped/secret")) for _ in range(5000)}
        seen |= {attempt(lambda: write(workspace, "swapped/new", b"x")) for _ in range(5000)}
    finally:
        swapper.kill()
        swapper.communicate()
    assert seen <= {
        b"inside",
        None,
        "outside_workspace",
        "not_found",
        "not_a_directory",
        "bad_request",
    }
    assert {b"inside", "outside_workspace"} <= seen, "the race was not on"
    assert names(root.parent / "outside") == ["secret"]


def attempt(operation: Callable[[], object]) -> object:
    try:
        return operation()
    except RefusedError as refused:
        return refused.kind


def test_two_writers_leave_one_whole_content(workspace: Workspace, root: Path) -> None:
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    code = (
        "import sys; from agentenv_backends.sandboxd.slot_files import Workspace; w = Workspace(sys.argv[1]);"
        "[w.write({'path': 'f'}, sys.argv[2].encode() * 200_000) for _ in range(200)]"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(root)]
    seen = set()
    with child([*command, "a"], env=env) as one, child([*command, "b"], env=env) as other:
        writers = (one, other)
        while any(writer.poll() is None for writer in writers):
            seen.add(attempt(lambda: read(workspace, "f", limit=1_000_000)))
            time.sleep(0)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {*contents, "not_found"}
    assert names(root) == ["f"]


def test_a_way_that_links_make_endless_is_refused_before_it_takes_long(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = "/".join(["d"] * 300)
    (root / deep).mkdir(parents=True)
    for number in range(30):
        target = "../d/" * 700 + f"link{number + 1}"
        (root / deep / f"link{number}").symlink_to(target)
    (root / deep / "link30").write_text("here")
    opened = itertools.count()
    real_open = os.open

    def counting_open(*arguments: Any, **options: Any) -> int:
        next(opened)
        return real_open(*arguments, **options)

    monkeypatch.setattr(os, "open", counting_open)
    assert refusal(read, workspace, f"{deep}/link0") == "bad_request"
    assert next(opened) < 100_000
    assert read(workspace, f"{deep}/link30") == b"here"


def test_an_offset_that_no_file_has_is_refused(workspace: Workspace, root: Path) -> None:
    (root / "f").write_text("x")
    assert refusal(read, workspace, "f", offset=1 << 70) == "bad_request"
    assert read(workspace, "f", offset=1 << 40) == b""
