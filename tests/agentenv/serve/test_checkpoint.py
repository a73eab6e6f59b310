"""The environment's own state: in the protocol's place, whole, found again."""

import json
from pathlib import Path

import pytest

from agentenv.serve.checkpoint import (
    CheckpointError,
    Checkpoints,
    checkpoint_folder,
    latest_namesake,
)


@pytest.fixture
def store(tmp_path: Path):
    made = Checkpoints(checkpoint_folder(tmp_path, "maths_0"))
    yield made
    made.close()


async def test_it_is_where_users_of_the_protocol_look(tmp_path: Path, store: Checkpoints):
    store.save(20, {"iter": 7})
    assert store.is_saving(20)
    assert await store.flush() == 1
    file = tmp_path / "env_checkpoints/maths_0/step-20.json"
    assert json.loads(file.read_bytes()) == {"iter": 7}
    assert [entry.name for entry in file.parent.iterdir()] == ["step-20.json"]


async def test_the_latest_that_is_not_ahead_of_training_is_found(store: Checkpoints):
    for step in (10, 20, 30):
        store.save(step, {"at": step})
    await store.flush()
    assert store.load(25) == (20, {"at": 20})
    assert store.load(30) == (30, {"at": 30})
    assert store.load(9) is None


async def test_a_snapshot_is_taken_at_once(store: Checkpoints):
    state = {"seen": [1]}
    store.save(1, state)
    state["seen"].append(2)
    await store.flush()
    assert store.load(1) == (1, {"seen": [1]})


async def test_a_damaged_one_is_passed_over_for_the_one_before_it(store: Checkpoints):
    for step in (1, 2):
        store.save(step, {"at": step})
    await store.flush()
    (store.folder / "step-2.json").write_text('{"at":')
    assert store.load(5) == (1, {"at": 1})
    (store.folder / "step-1.json").write_text("[]")
    with pytest.raises(CheckpointError, match="step-2"):
        store.load(5)


async def test_what_is_no_json_is_refused_by_name(store: Checkpoints):
    with pytest.raises(CheckpointError, match=r"step-3\.json.*no JSON"):
        store.save(3, {"rng": object()})


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    store = Checkpoints(checkpoint_folder(tmp_path / "file", "x"))
    store.save(1, {})
    with pytest.raises(CheckpointError, match="cannot be written"):
        await store.flush()
    store.close()


@pytest.mark.parametrize("name", ["../../up", "/root", "..", "a/b", ""])
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: str):
    folder = checkpoint_folder(tmp_path, name)
    assert folder.resolve().parent == (tmp_path / "env_checkpoints").resolve()
    assert folder.resolve() != folder.resolve().parent


async def test_an_earlier_environment_of_the_same_name_is_found(tmp_path: Path):
    for name, step in (("maths_0", 10), ("maths_1", 30), ("maths_2", 20), ("mathsy_0", 99)):
        store = Checkpoints(checkpoint_folder(tmp_path, name))
        store.save(step, {})
        await store.flush()
        store.close()
    found = latest_namesake(tmp_path, "maths")
    assert found is not None
    assert found.name == "maths_1"
    assert latest_namesake(tmp_path, "physics") is None
