"""Folders that a command had its way with are emptied, and nothing beside them is touched."""

from __future__ import annotations

import os
from pathlib import Path

from agentenv_backends.sandboxd.trees import empty_folder, remove_tree


def test_a_tree_deeper_than_stack_and_descriptors_go_is_removed(tmp_path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    top = tmp_path / "top"
    top.mkdir()
    try:
        os.chdir(top)
        for _ in range(3000):
            Path("d" * 50).mkdir()
            os.chdir("d" * 50)
    finally:
        os.chdir(here)
        os.close(here)
    assert remove_tree(str(top))
    assert list(tmp_path.iterdir()) == []


def test_modes_odd_names_pipes_and_links_are_no_obstacle(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    top = tmp_path / "top"
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "a" / "b" / "file").write_text("x")
    os.mkfifo(top / "a" / "pipe")
    (top / "a" / "link").symlink_to(outside)
    (top / "link").symlink_to(outside)
    (top / os.fsdecode(b"\xff\n*")).mkdir()
    for path in (top / "a" / "b" / "c", top / "a" / "b", top / "a"):
        path.chmod(0)
    empty_folder(str(top))
    assert list(top.iterdir()) == []
    assert (outside / "kept").read_text() == "x"
    assert outside.stat().st_mode & 0o777 == 0o755


def test_more_names_than_are_listed_at_once_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "below").mkdir(parents=True)
    for number in range(5000):
        (top / "below" / f"{number}").touch()
        (top / f"{number}").touch()
    assert remove_tree(str(top))
    assert not top.exists()


def test_a_link_and_a_file_are_no_trees_and_what_is_not_there_is_gone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "file").touch()
    assert not remove_tree(str(tmp_path / "link"))
    assert not remove_tree(str(tmp_path / "file"))
    assert remove_tree(str(tmp_path / "missing"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
