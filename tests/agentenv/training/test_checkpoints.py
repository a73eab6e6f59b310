from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from agentenv.policy import APIServerConfig, SamplingParams, build_policy  # noqa: E402
from agentenv.training.checkpoints import CheckpointError, CheckpointStore  # noqa: E402
from agentenv.training.learner import Learner  # noqa: E402
from agentenv.training.rows import group_rows  # noqa: E402
from tests.agentenv.training.groups import tiny_model, two_rows  # noqa: E402

pytestmark = pytest.mark.torch
torch.set_num_threads(1)
KILLS = 3

ENDLESS_WRITER = """
import sys
from pathlib import Path
from agentenv.training.checkpoints import CheckpointStore
from agentenv.training.learner import Learner
from tests.agentenv.training.groups import tiny_model
store = CheckpointStore(Path(sys.argv[1]), model_path=Path(sys.argv[1]))
latest = store.latest()
step = latest.step if latest else 0
learner = Learner(tiny_model())
while True:
    step += 1
    store.save(learner, step=step, batch_id=step)
    print(step, flush=True)
"""


def store_in(folder: Path, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(folder, model_path=folder, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_empty_folder_or_none_has_no_checkpoint(tmp_path):
    assert store_in(tmp_path).latest() is None
    assert store_in(tmp_path / "none").latest() is None


def test_weights_and_optimizer_come_back_as_they_were(tmp_path):
    learner = Learner(tiny_model())
    learner.learn(group_rows(two_rows()))
    saved = store_in(tmp_path).save(learner, step=3, batch_id=7)
    other = Learner(tiny_model(seed=9))

    latest = store_in(tmp_path).latest()
    assert latest == saved
    store_in(tmp_path).restore(saved, other)
    for one in (learner, other):
        one.learn(group_rows(two_rows()))

    for mine, theirs in zip(learner.weights().values(), other.weights().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_only_the_newest_are_kept_and_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".step-000001.99").mkdir()
    for step in (9, 10, 11):
        store_in(tmp_path).save(Learner(tiny_model()), step=step, batch_id=None)

    assert names(tmp_path) == ["step-000010", "step-000011"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    for batch in (5, 6):
        store_in(tmp_path).save(Learner(tiny_model()), step=1, batch_id=batch)

    latest = store_in(tmp_path).latest()
    assert latest is not None
    assert latest.batch_id == 6


def test_damage_is_told_with_the_path(tmp_path):
    saved = store_in(tmp_path).save(Learner(tiny_model()), step=1, batch_id=None)
    (saved.path / "optimizer.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="step-000001 cannot be restored"):
        store_in(tmp_path).restore(saved, Learner(tiny_model()))

    (saved.path / "trainer.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-000001 cannot be read"):
        store_in(tmp_path).latest()


async def test_a_checkpoint_is_a_model_to_sample_from(tmp_path):
    saved = store_in(tmp_path).save(Learner(tiny_model()), step=1, batch_id=None)
    policy = build_policy([APIServerConfig(server_type="transformers", model_name=str(saved.path))])
    await policy.start()
    try:
        reply = await policy.generate([1], SamplingParams(max_tokens=3), trajectory_id="t")
    finally:
        await policy.close()
    assert len(reply.token_ids) == 3


@pytest.mark.slow
async def test_whenever_the_writer_is_killed_the_latest_checkpoint_is_whole(tmp_path):
    reached = 0
    for kill in range(KILLS):
        writer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[3],
            env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        try:
            async with asyncio.timeout(60):
                assert writer.stdout is not None
                for _ in range(2):
                    reached = int(await writer.stdout.readline())
            await asyncio.sleep(0.005 * kill)  # so that the kills come at different places
        finally:
            writer.send_signal(signal.SIGKILL)
            await writer.wait()

        latest = store_in(tmp_path).latest()
        assert latest is not None
        assert latest.step >= reached
        store_in(tmp_path).restore(latest, Learner(tiny_model()))
