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


def after_another_step(demo: subprocess.Popen[str], folder: Path) -> set[Process]:
    """Wait until the trainer has written one step more than it had; what the demo has started by then."""
    before = len(learned(folder))
    wait_until(
        lambda: len(learned(folder)) > before or demo.poll() is not None,
        f"step {before + 1}",
        within_s=DEADLINE_S,
    )
    return descendants(demo.pid)


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


def test_nothing_is_left_running_whatever_ends_it_and_the_same_folder_goes_on_to_the_end(
    start, tmp_path
):
    """One folder, since what a demo has begun with costs more than all that is shown here."""
    demo = start(500)
    processes = after_another_step(demo, tmp_path)
    demo.send_signal(signal.SIGINT)
    output = output_of(demo)
    assert demo.returncode == 130, output
    assert "as it is" in output  # measured before it began
    assert "to go on" in output
    assert not alive(processes)

    demo = start(500)
    processes = after_another_step(demo, tmp_path)
    trainer_among(processes).kill()
    output = output_of(demo)
    assert demo.returncode == 1, output
    assert "the trainer ended before training was done (exit status 137)" in output
    assert "as it is" not in output  # measured the first time, and remembered
    assert not alive(processes)

    demo = start(500)
    processes = after_another_step(demo, tmp_path)
    assert trainer_among(processes).alive
    demo.kill()
    output_of(demo)
    wait_until(lambda: not alive(processes), "the end of every process of a killed demo")

    last = max(learned(tmp_path)) + 2
    demo = start(last)
    processes = after_another_step(demo, tmp_path)
    output = output_of(demo)
    assert demo.returncode == 0, output
    assert not alive(processes)
    steps = learned(tmp_path)
    assert set(steps) == set(range(1, last + 1))
    assert len(steps) <= last + 2  # at most the step of each kill was written down twice

    assert f"step   {last}/{last}" in output
    assert "gain, points" in output
    run = tmp_path / "run"
    assert (run / "reward.png").stat().st_size > 1_000
    assert (run / f"checkpoints/step-{last:06}/model.safetensors").exists()
    result = json.loads((run / "result.json").read_text())
    assert [len(each) for each in result["scores"]["before"]] == [2, 2]
