"""Glob and grep on a plain folder: what is found, in what order, and what can never take for ever or lead outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.sandboxd import slot_search, slot_walk
from agentenv_backends.sandboxd.refusal import RefusedError
from agentenv_backends.sandboxd.slot_files import Workspace
from agentenv_backends.sandboxd.slot_glob import matches
from tests.agentenv_backends.sandboxd.test_slot_files import SWAP, attempt

if TYPE_CHECKING:
    pass


@pytest.fixture
def root(root: Path) -> Path:
    (root.parent / "outside" / "secret.py").write_text("secret")
    return root


def fill(root: Path, *paths: str, text: str = "") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def glob(
    workspace: Workspace,
    pattern: str,
    *,
    cwd: str = ".",
    ignore: tuple[str, ...] = (),
    limit: int = 1000,
) -> list[str]:
    paths, truncated = glob_cut(workspace, pattern, cwd=cwd, ignore=ignore, limit=limit)
    assert not truncated
    return paths


def glob_cut(
    workspace: Workspace,
    pattern: str,
    *,
    cwd: str = ".",
    ignore: tuple[str, ...] = (),
    limit: int = 1000,
) -> tuple[list[str], bool]:
    request = {"pattern": pattern, "cwd": cwd, "ignore": list(ignore), "max": limit}
    header, body = slot_search.glob(workspace, request)
    return json.loads(body), json.loads(header)["truncated"]


def grep(workspace: Workspace, pattern: str, **options: Any) -> list[list[Any]]:
    return grep_all(workspace, pattern, **options)[1]


def grep_all(
    workspace: Workspace,
    pattern: str,
    *,
    cwd: str = ".",
    include: tuple[str, ...] = (),
    limit: int = 100,
    context: int = 0,
) -> tuple[dict[str, Any], list[list[Any]]]:
    request = {"pattern": pattern, "cwd": cwd, "include": list(include), "max": limit, "context": context}  # fmt: skip
    header, body = slot_search.grep(workspace, request)
    return json.loads(header), json.loads(body)


def kind_of(error: pytest.ExceptionInfo[RefusedError]) -> str:
    return error.value.kind


# ---- patterns ----


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.py", "a.py", True),
        ("*.py", "deep/down/a.py", True),
        ("*.py", "a.pyc", False),
        ("*", ".hidden", True),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/sub/a.py", False),
        ("src/*.py", "lib/src/a.py", False),
        ("**/src/*.py", "lib/src/a.py", True),
        ("**/src/*.py", "src/a.py", True),
        ("src/**/*.py", "src/a.py", True),
        ("src/**/*.py", "src/x/y/a.py", True),
        ("src/**", "src/x/y/a.py", True),
        ("src/**", "src", False),
        ("**/a/**/b", "x/a/y/z/b", True),
        ("**/**/b", "b", True),
        ("./src//a.py", "src/a.py", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[ab]*.txt", "b1.txt", True),
        ("[!ab]*", "b", False),
        ("[^ab]*", "c", True),
        ("[a-c]x", "bx", True),
        ("[a-c]x", "dx", False),
        ("[]]", "]", True),
        ("[", "[", True),
        ("[*]", "*", True),
        ("[*]", "x", False),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("a*a", "a", False),
        ("*é*", "café.txt", True),
        ("A.py", "a.py", False),
        ("a{b,c}", "ab", False),
    ],
)
def test_a_pattern_matches_whole_paths_by_their_names(
    pattern: str, path: str, expected: bool
) -> None:
    assert matches([pattern], path) is expected


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "a/../../b", "", "/", ".", "x" * 5000])
def test_patterns_that_go_up_or_name_nothing_are_refused(
    workspace: Workspace, pattern: str
) -> None:
    with pytest.raises(RefusedError) as error:
        glob(workspace, pattern)
    assert kind_of(error) == "bad_request"


def test_no_pattern_takes_long(workspace: Workspace, root: Path) -> None:
    fill(root, "a" * 250, "/".join(["a"] * 60))
    assert glob(workspace, "*a" * 100 + "b") == []
    assert glob(workspace, "**/a/" * 60 + "b") == []
    assert glob(workspace, "[a]*[a]*[a]*[a]*[a]*[a]*[a]*[a]*[a]*[a]*[!a]") == []


# ---- glob ----


def test_files_are_listed_in_the_order_of_their_whole_paths(
    workspace: Workspace, root: Path
) -> None:
    fill(root, "a/x", "a.txt", "a-b", "ab", "a/b/c", "B", ".dot/x")
    assert glob(workspace, "**") == [".dot/x", "B", "a-b", "a.txt", "a/b/c", "a/x", "ab"]


def test_folders_are_not_listed_and_links_are_listed_but_not_followed(
    workspace: Workspace, root: Path
) -> None:
    fill(root, "d/f")
    (root / "link").symlink_to("d")
    (root / "out").symlink_to("../outside")
    (root / "ring").symlink_to("ring")
    os.mkfifo(root / "fifo")
    assert glob(workspace, "**") == ["d/f", "fifo", "link", "out", "ring"]
    assert glob(workspace, "*.py") == []


def test_a_search_begins_at_cwd_and_paths_are_those_of_the_workspace(
    workspace: Workspace, root: Path
) -> None:
    fill(root, "p/src/a.py", "p/src/b/c.py", "other.py")
    (root / "link").symlink_to("p/src")
    assert glob(workspace, "*.py", cwd="p") == ["p/src/a.py", "p/src/b/c.py"]
    assert glob(workspace, "b/*.py", cwd="p/src") == ["p/src/b/c.py"]
    assert glob(workspace, "a.py", cwd=f"{root}/p/src") == ["p/src/a.py"]
    assert glob(workspace, "a.py", cwd="link") == ["p/src/a.py"]
    assert glob(workspace, "a.py", cwd="p/src/a.py") == ["p/src/a.py"]


@pytest.mark.parametrize(
    ("cwd", "kind"),
    [("..", "outside_workspace"), ("/etc", "outside_workspace"), ("out", "outside_workspace"), ("none", "not_found")],
)  # fmt: skip
def test_a_search_outside_is_refused(workspace: Workspace, root: Path, cwd: str, kind: str) -> None:
    (root / "out").symlink_to("../outside")
    for search in (glob, grep):
        with pytest.raises(RefusedError) as error:
            search(workspace, "secret", cwd=cwd)
        assert kind_of(error) == kind


def test_ignored_folders_are_not_even_entered(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, "src/a.py", "src/gen/b.py", "node_modules/x/y.js", "deep/node_modules/z.js", "b.pyc")
    opened: list[object] = []
    real_open = os.open

    def noting_open(path: Any, *arguments: Any, **options: Any) -> int:
        opened.append(path)
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", noting_open)
    found = glob(workspace, "*", ignore=("node_modules", "*.pyc", "src/gen/**"))
    assert found == ["src/a.py"]
    assert "node_modules" not in opened


def test_folders_where_nothing_can_match_are_not_entered(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, "src/deep/a.py", "lib/b.py")
    entered: list[str] = []
    real = slot_walk.Walk._entries

    def noting(self: Any, fd: int, *rest: Any) -> Any:
        entered.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        return real(self, fd, *rest)

    monkeypatch.setattr(slot_walk.Walk, "_entries", noting)
    assert glob(workspace, "src/*.py") == []
    assert entered == ["work", "src"]


def test_odd_names_survive(workspace: Workspace, root: Path) -> None:
    odd = [b"new\nline", b"-rf", b"\xff\xfe", b"x" * 255, b"...", "ü".encode()]
    for name in odd:
        os.close(os.open(os.fsencode(root) + b"/" + name, os.O_CREAT))
    found = glob(workspace, "*")
    assert sorted(os.fsencode(path) for path in found) == sorted(odd)
    assert os.fsencode(glob(workspace, "\udcff?")[0]) == b"\xff\xfe"


def test_more_files_than_asked_for_give_the_first_ones(workspace: Workspace, root: Path) -> None:
    fill(root, *(f"{number:03}" for number in range(30)))
    paths, truncated = glob_cut(workspace, "*", limit=10)
    assert paths == [f"{number:03}" for number in range(10)]
    assert truncated
    assert len(glob(workspace, "*", limit=30)) == 30


def test_trees_too_deep_or_wide_to_walk_are_cut_and_it_says_so(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = "/".join(["d"] * 300)
    (root / deep).mkdir(parents=True)
    assert glob_cut(workspace, "*") == ([], True)
    monkeypatch.setattr(slot_walk, "MAX_LISTED_ENTRIES", 5)
    fill(root, *(f"w/{number}" for number in range(10)))
    paths, truncated = glob_cut(workspace, "w/*")
    assert len(paths) == 5
    assert truncated


def test_a_walk_that_takes_too_long_says_what_it_has_found(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, *(f"{number}/x" for number in range(20)))
    ticks = iter(range(10_000))
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    monkeypatch.setattr(slot_search, "GLOB_S", 30)
    paths, truncated = glob_cut(workspace, "*")
    assert 0 < len(paths) < 20
    assert truncated


# ---- grep ----


def test_lines_are_found_in_order_of_paths_and_lines(workspace: Workspace, root: Path) -> None:
    fill(root, "b.py", text="x = 1\nfoo(x)\n\nfoo(y)")
    fill(root, "a/c.py", text="def foo(): pass\n")
    assert grep(workspace, r"foo\(") == [
        ["a/c.py", 1, "def foo(): pass"],
        ["b.py", 2, "foo(x)"],
        ["b.py", 4, "foo(y)"],
    ]
    assert grep(workspace, "foo", cwd="b.py") == [["b.py", 2, "foo(x)"], ["b.py", 4, "foo(y)"]]


PATTERNS = [
    "a", "foo", r"fo+\b", r"^x", r"x$", "^$", r"\s+$", "(?i)FOO", "(?x) f oo # note", r"\d\d", "foo|bar",
    "b?ar", "é", r"[^a]z", "(?<!x)foo", r"foo(?!\()", "o{2}", r"a.c", "", "a\nb", r"\Afoo", r"foo\Z",
    r"(f)\1?oo", "b(?=ar)", r"\.", "oo.*ba",
]  # fmt: skip
TEXTS = [
    "", "foo\n", "foo", "\n\n", "x foo\nbar", "a\r\nfoo(\r\n", "é1 22\n", "FOO\nz", "zz\nbz",
    "abc\n.a.c\n\nfoo bar  \nbar",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_found_is_what_a_search_line_by_line_finds(
    workspace: Workspace, root: Path, pattern: str
) -> None:
    import re

    for number, text in enumerate(TEXTS):
        (root / f"{number}").write_bytes(text.encode())
    expected = [
        [f"{number}", line_number, line]
        for number, text in enumerate(TEXTS)
        for line_number, line in enumerate(text.replace("\r\n", "\n").removesuffix("\n").split("\n"), 1)
        if text and re.search(pattern, line)
    ]  # fmt: skip
    assert grep(workspace, pattern) == expected


def test_context_is_given_with_each_match(workspace: Workspace, root: Path) -> None:
    fill(root, "f", text="1\n2\nhit\n4\nhit\n")
    for pattern in ("hit", "h[i]t"):
        assert grep(workspace, pattern, context=2) == [
            ["f", 3, "hit", ["1", "2"], ["4", "hit"]],
            ["f", 5, "hit", ["hit", "4"], []],
        ]


def test_only_included_files_are_searched(workspace: Workspace, root: Path) -> None:
    fill(root, "a.py", "a.js", "src/b.py", "src/c.ts", text="hit")
    found = [row[0] for row in grep(workspace, "hit", include=("*.py", "src/*.ts"))]
    assert found == ["a.py", "src/b.py", "src/c.ts"]
    assert grep(workspace, "hit", cwd="src", include=("b.*",)) == [["src/b.py", 1, "hit"]]


def test_what_is_no_text_too_large_or_unreadable_is_counted(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, "good", text="hit")
    (root / "nul").write_bytes(b"hit\0")
    (root / "latin").write_bytes("hit é".encode("latin-1"))
    with (root / "sparse").open("wb") as file:
        file.write(b"hit\n")
        file.truncate(100 << 30)
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("good")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        header, rows = grep_all(workspace, "hit")
    assert rows == [["good", 1, "hit"]]
    assert header == {"truncated": False, "skipped": 3}


def test_more_matches_than_asked_for_give_the_first_ones(workspace: Workspace, root: Path) -> None:
    fill(root, "a", "b", text="hit\n" * 5)
    header, rows = grep_all(workspace, "hit", limit=7)
    assert [row[:2] for row in rows] == [*(["a", n] for n in range(1, 6)), ["b", 1], ["b", 2]]
    assert header["truncated"]
    assert not grep_all(workspace, "hit", limit=10)[0]["truncated"]


def test_an_answer_has_a_bound_in_bytes(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_search, "MAX_ANSWER", 2000)
    fill(root, "a", text=("hit " * 30 + "\n") * 1000)
    header, rows = grep_all(workspace, "hit", limit=1000)
    assert header["truncated"]
    assert 5 < len(rows) < 20


def test_a_long_line_is_cut_around_the_match(workspace: Workspace, root: Path) -> None:
    fill(root, "min.js", text="x" * 5000 + "hit" + "y" * 5000)
    ((_, _, text),) = grep(workspace, "hit")
    assert "hit" in text
    assert text.startswith("...x")
    assert text.endswith("y...")
    assert len(text) < 600


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a[", "pattern: unterminated character set at position 1"),
        ("(", "pattern: missing ), unterminated subpattern at position 0"),
        ("a**", "pattern: multiple repeat at position 2"),
        ("x{99999999999999999999}", "pattern: "),
        ("(" * 5000 + ")" * 5000, "pattern: "),
    ],
)
def test_a_bad_pattern_is_refused_with_its_position(
    workspace: Workspace, root: Path, pattern: str, message: str
) -> None:
    with pytest.raises(RefusedError) as error:
        grep(workspace, pattern)
    assert kind_of(error) == "bad_request"
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("name", "value"), [("limit", 0), ("limit", 10_001), ("context", -1), ("context", 51)]
)
def test_numbers_out_of_range_are_refused(workspace: Workspace, name: str, value: int) -> None:
    with pytest.raises(RefusedError) as error:
        grep(workspace, "x", **{name: value})
    assert kind_of(error) == "bad_request"


@pytest.mark.slow
def test_swapping_a_folder_for_a_link_leads_no_search_outside(
    workspace: Workspace, root: Path
) -> None:
    fill(root, "swapped/secret.py", text="inside")
    (root / "link").symlink_to("../outside")
    arguments = [str(root / "parked"), str(root / "link"), str(root / "swapped")]
    swapper = subprocess.Popen([sys.executable, "-c", SWAP, *arguments], stdout=subprocess.PIPE)
    seen: set[object] = set()
    try:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        for _ in range(3000):
            seen.update(row[2] for row in grep(workspace, "."))
            seen.add(attempt(lambda: tuple(row[2] for row in grep(workspace, ".", cwd="swapped"))))
    finally:
        swapper.kill()
        swapper.communicate()
    assert {"inside", ("inside",), "outside_workspace"} <= seen, "the race was not on"
    assert not [found for found in seen if found in ("secret", ("secret",))]
