"""The whole demo, small: three real processes, and nothing left of them whatever ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import Process, alive, descendants
from tests.waiting import wait_until

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

pytestmark = [pytest.mark.torch, pytest.mark.sandbox, pytest.mark.slow]
ROOT = Path(__file__).parents[4]
DEADLINE_S = 300.0

CONFIG = """
environment: shell_tasks
env:
  {split: train, group_size: 4, max_num_workers: 4, ensure_scores_are_not_same: false, seed: 0,
   backend: {type: local, slots: 8}}
training: {steps: STEPS, batch_size: 8}
evaluation: {env: {split: held_out}, tasks: 2, samples: 2}
"""


@pytest.fixture
def start(tmp_path):
    """Start demos in one folder. A test that fails leaves none of them running, and no pipe open."""
    with ExitStack() as demos:

        def begin(steps: int) -> subprocess.Popen[str]:
            demo = demos.enter_context(started(tmp_path, steps))
            demos.callback(demo.kill)
            return demo

        yield begin


def started(folder: Path, steps: int) -> subprocess.Popen[str]:
    config = folder / "demo.yaml"
    config.write_text(CONFIG.replace("STEPS", str(steps)))
    command = ["-m", "agentenv", "train-demo", str(config), "--run-dir", str(folder / "run")]
    return subprocess.Popen(
        [sys.executable, *command, "--plain"],
        cwd=ROOT,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(demo: subprocess.Popen[str], folder: Path, steps: int) -> None:
    """Return when the trainer has written that many steps, or the demo has ended."""
    wait_until(
        lambda: len(learned(folder)) >= steps or demo.poll() is not None,
        f"{steps} steps",
        within_s=DEADLINE_S,
    )


def learned(folder: Path) -> list[int]:
    """The step of each line that the trainer has written."""
    path = folder / "run/steps.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in whole]


def trainer_among(processes: set[Process]) -> Process:
    (found,) = [each for each in processes if each.command[1:3] == ["-m", "agentenv.training"]]
    return found


def output_of(demo: subprocess.Popen[str]) -> str:
    return demo.communicate(timeout=DEADLINE_S)[0]


def test_it_trains_measures_and_draws_and_leaves_nothing_running(start, tmp_path):
    demo = start(2)
    seen: set[Process] = set()

    def trained() -> bool:
        seen.update(descendants(demo.pid))
        return demo.poll() is not None or len(learned(tmp_path)) >= 2

    wait_until(trained, "two steps", within_s=DEADLINE_S)
    output = output_of(demo)

    assert demo.returncode == 0, output
    assert "step   2/2" in output
    assert "gain, points" in output
    run = tmp_path / "run"
    assert (run / "reward.png").stat().st_size > 1_000
    assert (run / "checkpoints/step-000002/model.safetensors").exists()
    result = json.loads((run / "result.json").read_text())
    assert [len(each) for each in result["scores"]["before"]] == [2, 2]
    wait_until(lambda: not alive(seen), "the end of every process")

    more = start(3)
    output = output_of(more)
    assert more.returncode == 0, output
    assert learned(tmp_path) == [1, 2, 3]


def test_ctrl_c_ends_everything_and_the_same_folder_goes_on(start, tmp_path):
    demo = start(500)
    wait_for_steps(demo, tmp_path, 2)
    processes = descendants(demo.pid)
    demo.send_signal(signal.SIGINT)
    output = output_of(demo)

    assert demo.returncode == 130, output
    assert "to go on" in output
    assert not alive(processes)
    reached = len(learned(tmp_path))

    again = start(reached + 2)
    output = output_of(again)
    assert again.returncode == 0, output
    assert "as it is" not in output  # measured the first time, and remembered
    steps = learned(tmp_path)
    assert sorted(set(steps)) == list(range(1, reached + 3))


def test_a_killed_trainer_ends_the_demo_with_the_reason_and_training_goes_on_afterwards(
    start, tmp_path
):
    demo = start(500)
    wait_for_steps(demo, tmp_path, 2)
    processes = descendants(demo.pid)
    trainer_among(processes).kill()
    output = output_of(demo)

    assert demo.returncode == 1, output
    assert "the trainer ended before training was done (exit status 137)" in output
    assert not alive(processes)

    reached = len(learned(tmp_path))
    again = start(reached + 1)
    output = output_of(again)
    assert again.returncode == 0, output
    steps = learned(tmp_path)
    assert set(steps) == set(range(1, reached + 2))
    assert len(steps) <= len(set(steps)) + 1  # at most the step of the kill was written down twice


def test_a_demo_that_is_killed_takes_its_processes_along(start, tmp_path):
    demo = start(500)
    wait_for_steps(demo, tmp_path, 1)
    processes = descendants(demo.pid)
    assert trainer_among(processes).alive
    demo.kill()
    output_of(demo)

    wait_until(lambda: not alive(processes), "the end of every process")
