"""Editing and viewing files on a plain folder: what is changed, what is refused, and what stays as it was."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.sandboxd import slot_edit
from agentenv_backends.sandboxd.refusal import RefusedError
from agentenv_backends.sandboxd.slot_files import Workspace
from tests.processes import child

if TYPE_CHECKING:
    pass


def edit(workspace: Workspace, path: str, old: str, new: str, *, every: bool = False) -> int:
    header = {"path": path, "old": len(old.encode()), "all": every}
    answer, _ = slot_edit.edit(workspace, header, (old + new).encode())
    count: int = json.loads(answer)["replacements"]
    return count


def view(
    workspace: Workspace,
    path: str,
    line: int = 0,
    lines: int = 1 << 62,
    limit: int = 1000,
    max_image: int = 1000,
) -> tuple[dict[str, Any], bytes]:
    request = {"path": path, "line": line, "lines": lines, "max": limit, "max_image": max_image}
    header, body = slot_edit.view(workspace, request)
    return json.loads(header), body


def refused(operation: Any, *arguments: Any, **options: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        operation(*arguments, **options)
    return caught.value


# ---- editing ----


def test_the_one_place_is_changed_and_the_rest_stays(workspace: Workspace, root: Path) -> None:
    (root / "a.py").write_text("def f():\n    return 1\n\ndef g():\n    return 2")
    assert edit(workspace, "a.py", "    return 2", "    return 3") == 1
    assert (root / "a.py").read_text() == "def f():\n    return 1\n\ndef g():\n    return 3"
    assert edit(workspace, "a.py", "return", "yield", every=True) == 2
    assert edit(workspace, "a.py", "def g():\n    yield 3", "") == 1
    assert (root / "a.py").read_text() == "def f():\n    yield 1\n\n"


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("absent", "x", "no_match"),
        ("Twice", "x", "no_match"),
        ("twice", "x", "several_matches"),
        ("aa", "x", "several_matches"),
        ("once", "once", "bad_request"),
        ("", "x", "bad_request"),
        ("once\r\n", "x", "no_match"),
    ],
)
def test_what_is_not_clear_is_refused_and_the_file_stays(
    workspace: Workspace, root: Path, old: str, new: str, kind: str
) -> None:
    content = "once\ntwice twice\naaa\n"
    (root / "f").write_text(content)
    before = (root / "f").stat()
    assert refused(edit, workspace, "f", old, new).kind == kind
    assert (root / "f").read_text() == content
    assert (root / "f").stat().st_ino == before.st_ino


def test_a_text_that_is_there_twice_is_refused_with_its_lines(
    workspace: Workspace, root: Path
) -> None:
    (root / "f").write_text("x\ny\nx\n")
    assert "lines 1, 3" in refused(edit, workspace, "f", "x", "z").message


@pytest.mark.parametrize(
    ("old", "new"), [("two\n", "2\nand\n"), ("two\r\n", "2\r\nand\r\n"), ("two", "2\nand")]
)
def test_in_a_file_of_crlf_lines_both_texts_have_crlf_line_ends(
    workspace: Workspace, root: Path, old: str, new: str
) -> None:
    (root / "f").write_bytes(b"one\r\ntwo\r\nthree")
    edit(workspace, "f", old, new)
    assert (root / "f").read_bytes() == b"one\r\n2\r\nand\r\nthree"


def test_in_a_file_of_mixed_line_ends_texts_are_taken_as_they_are(
    workspace: Workspace, root: Path
) -> None:
    (root / "f").write_bytes(b"one\r\ntwo\nthree")
    assert refused(edit, workspace, "f", "one\n", "1\n").kind == "no_match"
    edit(workspace, "f", "one\r\ntwo", "1\n2")
    assert (root / "f").read_bytes() == b"1\n2\nthree"


def test_mode_stays_and_a_link_stays_a_link(workspace: Workspace, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "run.sh").write_text("echo old\n")
    (root / "d" / "run.sh").chmod(0o4750)
    (root / "link").symlink_to("d/run.sh")
    edit(workspace, "link", "old", "new")
    assert (root / "link").is_symlink()
    assert (root / "d" / "run.sh").read_text() == "echo new\n"
    assert (root / "d" / "run.sh").stat().st_mode & 0o7777 == 0o4750
    assert sorted(path.name for path in (root / "d").iterdir()) == ["run.sh"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_owner_keeps_him(workspace: Workspace, root: Path) -> None:
    (root / "f").write_text("old")
    os.chown(root / "f", 4321, 1234)
    edit(workspace, "f", "old", "new")
    workspace.write({"path": "f"}, b"newer")
    assert (root / "f").read_text() == "newer"
    info = (root / "f").stat()
    assert (info.st_uid, info.st_gid) == (4321, 1234)


def test_a_file_whose_owner_cannot_be_kept_stays_as_it_was(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "f").write_text("old")
    of_another = (0o644, (os.geteuid() + 1, 0))

    def not_allowed(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(workspace, "_existing", lambda *_: of_another)
    monkeypatch.setattr(os, "fchown", not_allowed)
    assert refused(edit, workspace, "f", "old", "new").kind == "permission_denied"
    assert [path.name for path in root.iterdir()] == ["f"]
    assert (root / "f").read_text() == "old"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.write_bytes(b"old\0"), "not_text"),
        (lambda path: path.write_bytes(b"old \xe9"), "not_text"),
        (lambda path: path.mkdir(), "is_a_directory"),
        (os.mkfifo, "not_a_file"),
        (lambda path: path.symlink_to("/etc/passwd"), "outside_workspace"),
        (lambda path: path.symlink_to("nowhere"), "not_found"),
        (lambda path: path.touch(), "no_match"),
    ],
)
def test_what_is_no_text_file_is_refused(
    workspace: Workspace, root: Path, make: Any, kind: str
) -> None:
    make(root / "f")
    assert refused(edit, workspace, "f", "old", "new").kind == kind
    assert [path.name for path in root.iterdir()] == ["f"]


def test_a_huge_file_is_refused_without_being_read_whole(workspace: Workspace, root: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(100 << 30)
    assert refused(edit, workspace, "sparse", "old", "new").kind == "too_large"


def test_edits_by_two_processes_leave_one_whole_content(workspace: Workspace, root: Path) -> None:
    contents = [letter * 200_000 for letter in "abcd"]
    (root / "f").write_text(contents[0])
    code = (
        "import sys; from agentenv_backends.sandboxd.slot_files import Workspace\n"
        "from agentenv_backends.sandboxd.slot_edit import edit\n"
        "from agentenv_backends.sandboxd.refusal import RefusedError\n"
        "w = Workspace(sys.argv[1]); letters = 'abcd'\n"
        "for n in range(int(sys.argv[2]), 200):\n"
        "    old, new = letters[n % 4] * 200_000, letters[(n + 1) % 4] * 200_000\n"
        "    try: edit(w, {'path': 'f', 'old': len(old)}, (old + new).encode())\n"
        "    except RefusedError as error: assert error.kind == 'no_match', error\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(root)]
    seen = set()
    with child([*command, "0"], env=env) as one, child([*command, "1"], env=env) as other:
        editors = (one, other)
        while any(editor.poll() is None for editor in editors):
            seen.add((root / "f").read_text())
            time.sleep(0)
    assert [editor.returncode for editor in editors] == [0, 0]
    assert seen <= set(contents)
    assert len(seen) > 1
    assert [path.name for path in root.iterdir()] == ["f"]


# ---- viewing text ----


def test_lines_are_given_with_how_many_and_whether_there_are_more(
    workspace: Workspace, root: Path
) -> None:
    (root / "f").write_text("zero\none\r\n\nthree")
    header, content = view(workspace, "f")
    assert content == b"zero\none\r\n\nthree"
    assert header == {"type": "text/plain", "size": 16, "first": 0, "lines": 4, "more": 0, "cut": 0}
    header, content = view(workspace, "f", line=1, lines=2)
    assert content == b"one\r\n\n"
    assert (header["first"], header["lines"], header["more"], header["cut"]) == (1, 2, 1, 0)
    assert view(workspace, "f", line=3)[1] == b"three"
    assert view(workspace, "f", line=2, lines=2)[0]["more"] == 0


def test_a_line_beyond_the_end_is_refused_with_how_many_there_are(
    workspace: Workspace, root: Path
) -> None:
    (root / "whole").write_text("a\nb\n")
    (root / "open").write_text("a\nb")
    (root / "empty").write_text("")
    for name, lines in (("whole", 2), ("open", 2), ("empty", 0)):
        for line in (2, 50):
            error = refused(view, workspace, name, line=line)
            assert (error.kind, f"has {lines} lines" in error.message) == ("bad_request", True)
    assert view(workspace, "empty")[1] == b""


def test_text_beyond_the_limit_is_cut_between_lines_and_a_longer_line_between_characters(
    workspace: Workspace, root: Path
) -> None:
    (root / "f").write_text("1234\n" * 10)
    header, content = view(workspace, "f", limit=12)
    assert content == b"1234\n1234\n"
    assert (header["lines"], header["more"], header["cut"]) == (2, 1, 0)
    (root / "long").write_text("é" * 10 + "\nnext\n")
    header, content = view(workspace, "long", limit=5)
    assert content.decode() == "éé"
    assert (header["lines"], header["more"], header["cut"]) == (1, 1, 1)
    (root / "emoji").write_text("😀" * 3)
    assert view(workspace, "emoji", limit=7)[1].decode() == "😀"
    assert view(workspace, "f", limit=50)[0]["more"] == 0


def test_any_line_of_a_large_file_can_be_reached(workspace: Workspace, root: Path) -> None:
    (root / "log").write_text("".join(f"line {number}\n" for number in range(400_000)))
    assert view(workspace, "log", line=399_999)[1] == b"line 399999\n"
    assert view(workspace, "log", line=250_000, lines=1)[1] == b"line 250000\n"


@pytest.mark.parametrize(
    ("content", "where"),
    [(b"a\0b", "byte 1"), (b"ok\xe9", "byte 2"), (b"x\n" * 9000 + b"\0", "byte 18000")],
)
def test_a_binary_file_is_refused_with_where_it_is_no_text(
    workspace: Workspace, root: Path, content: bytes, where: str
) -> None:
    (root / "f").write_bytes(content)
    error = refused(view, workspace, "f", limit=100_000)
    assert error.kind == "not_text"
    assert where in error.message


def test_special_and_sparse_files_are_refused_at_once(workspace: Workspace, root: Path) -> None:
    os.mkfifo(root / "fifo")
    with (root / "sparse").open("wb") as file:
        file.write(b"text\n" * 5000)
        file.truncate(100 << 30)
    assert refused(view, workspace, "fifo").kind == "not_a_file"
    assert refused(view, workspace, ".").kind == "is_a_directory"
    assert refused(view, workspace, "sparse", line=9999).kind == "not_text"
    assert refused(view, workspace, "/proc/self/environ").kind == "outside_workspace"
    assert view(workspace, "sparse", lines=1)[1] == b"text\n"


# ---- viewing images ----

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(20)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9), "image/jpeg"),
        (b"GIF89a\1\0\1\0\0\0\0;", "image/gif"),
        (b"GIF87a\1\0\1\0\0\0\0;", "image/gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 " + bytes(9), "image/webp"),
    ],
)
def test_an_image_is_told_by_its_content_and_given_whole(
    workspace: Workspace, root: Path, content: bytes, media_type: str
) -> None:
    (root / "picture.txt").write_bytes(content)
    header, body = view(workspace, "picture.txt", limit=3)
    assert (header["type"], header["size"], body) == (media_type, len(content), content)


@pytest.mark.parametrize("content", [b"GIF89a is a format\n", b"RIFF....WEBP\n", b"<svg></svg>"])
def test_text_that_begins_like_an_image_is_text(
    workspace: Workspace, root: Path, content: bytes
) -> None:
    (root / "f.png").write_bytes(content)
    header, body = view(workspace, "f.png")
    assert (header["type"], body) == ("text/plain", content)


@pytest.mark.parametrize("content", [b"XXXX\0\0\0\0WEBP", b"\x7fELF\0", b"BM\0\0"])
def test_other_binaries_are_no_images(workspace: Workspace, root: Path, content: bytes) -> None:
    (root / "f.png").write_bytes(content)
    assert refused(view, workspace, "f.png").kind == "not_text"


def test_an_image_over_the_limit_is_refused(workspace: Workspace, root: Path) -> None:
    with (root / "big.png").open("wb") as file:
        file.write(PNG)
        file.truncate(100 << 30)
    assert refused(view, workspace, "big.png").kind == "too_large"


@pytest.mark.parametrize(
    "options", [{"line": -1}, {"lines": 0}, {"limit": 0}, {"limit": 1 << 30}, {"max_image": 0}]
)
def test_numbers_out_of_range_are_refused(
    workspace: Workspace, root: Path, options: dict[str, int]
) -> None:
    (root / "f").write_text("x")
    assert refused(view, workspace, "f", **options).kind == "bad_request"
