import hashlib

import pytest

from agentenv_environments.shell_tasks.check import differences
from agentenv_environments.shell_tasks.tasks import (
    FAMILIES,
    Split,
    Task,
    Workspace,
    is_held_out,
    make_task,
)
from agentenv_environments.shell_tasks.words import WORDS

SPLITS: tuple[Split, ...] = ("train", "held_out")


def tasks(split: Split, count: int = 3 * len(FAMILIES)) -> list[Task]:
    return [make_task(split, index) for index in range(count)]


def reading(workspace: Workspace) -> str:
    """What READ_COMMAND prints in that workspace."""
    folders = [f"d ./{folder}" for folder in workspace.folders]
    files = [
        f"{hashlib.sha256(text.encode()).hexdigest()}  ./{name}"
        for name, text in workspace.files.items()
    ]
    return "".join(f"{entry}\0" for entry in [*folders, *files])


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_index_gives_the_same_task(split):
    assert tasks(split) == tasks(split)


def test_families_take_turns():
    assert [task.family for task in tasks("train", len(FAMILIES))] == list(FAMILIES)


def test_ids_are_unique_across_splits():
    ids = [task.id for split in SPLITS for task in tasks(split)]

    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("split", SPLITS)
def test_file_names_belong_to_their_split(split):
    for task in tasks(split):
        for name in [*task.before.files, *task.after.files]:
            first, second = name.split("/")[-1].split(".")[0].split("-")
            assert is_held_out(first, second) == (split == "held_out"), name


def test_no_word_is_part_of_another():
    assert not [(a, b) for a in WORDS for b in WORDS if a != b and a in b]


def test_nearly_all_tasks_of_a_split_differ():
    asked = [task.instruction for task in tasks("train", 500)]

    assert len(set(asked)) > 490


@pytest.mark.parametrize("task", tasks("held_out", len(FAMILIES)), ids=lambda task: task.family)
def test_a_task_asks_for_a_change_or_an_answer(task):
    assert task.before != task.after or task.answer is not None


@pytest.mark.parametrize("task", tasks("train", len(FAMILIES)), ids=lambda task: task.family)
def test_every_task_has_slips_other_than_its_solution(task):
    assert len(task.slips) >= 2
    assert task.solution not in task.slips


def test_a_workspace_as_expected_shows_no_difference():
    workspace = Workspace({"a.txt": "one\n", "b/c.txt": ""}, frozenset({"b"}))

    assert differences(workspace, reading(workspace)) == []


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (Workspace({}), "'a.txt' is missing"),
        (Workspace({"a.txt": "two\n"}), "'a.txt' is not as it should be"),
        (Workspace({"a.txt": "one\n", "b.txt": ""}), "'b.txt' should not be there"),
        (Workspace({"a.txt": "one\n"}, frozenset({"c"})), "'c' should not be there"),
    ],
)
def test_each_difference_is_named(found, note):
    assert differences(Workspace({"a.txt": "one\n"}), reading(found)) == [note]


def test_a_link_to_the_right_content_is_no_file():
    assert differences(Workspace({"a.txt": "one\n"}), "l ./a.txt\0")


def test_a_name_cannot_pose_as_another_entry():
    wanted = Workspace({"a.txt": "one\n"})
    posing = Workspace({f"x\n{reading(wanted).rstrip(chr(0))}": "two\n"})

    assert differences(wanted, reading(posing))


def test_a_reading_cut_short_is_a_difference():
    wanted = Workspace({"a.txt": "one\n"})

    assert differences(wanted, reading(wanted)[:40])
