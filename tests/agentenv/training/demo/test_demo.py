"""The whole demo, small: three real processes, and nothing left of them whatever ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

if TYPE_CHECKING:
    from collections.abc import Callable

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


def start(folder: Path, steps: int) -> subprocess.Popen[str]:
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


def started_by(demo: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(demo.pid).children(recursive=True)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < give_up, f"not in time: {what}"
        time.sleep(0.05)


def learned(folder: Path) -> list[int]:
    """The step of each line that the trainer has written."""
    path = folder / "run/steps.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != "zombie"]


def trainer_among(processes: list[psutil.Process]) -> psutil.Process:
    (found,) = [each for each in processes if each.cmdline()[1:3] == ["-m", "agentenv.training"]]
    return found


def output_of(demo: subprocess.Popen[str]) -> str:
    return demo.communicate(timeout=DEADLINE_S)[0]


def test_it_trains_measures_and_draws_and_leaves_nothing_running(tmp_path):
    demo = start(tmp_path, steps=2)
    seen: dict[int, psutil.Process] = {}
    while demo.poll() is None and len(learned(tmp_path)) < 2:
        seen |= {each.pid: each for each in started_by(demo)}
        time.sleep(0.05)
    output = output_of(demo)

    assert demo.returncode == 0, output
    assert "step   2/2" in output
    assert "gain, points" in output
    run = tmp_path / "run"
    assert (run / "reward.png").stat().st_size > 1_000
    assert (run / "checkpoints/step-000002/model.safetensors").exists()
    result = json.loads((run / "result.json").read_text())
    assert [len(each) for each in result["scores"]["before"]] == [2, 2]
    wait_until(lambda: not alive(list(seen.values())), "the end of every process")

    more = start(tmp_path, steps=3)
    output = output_of(more)
    assert more.returncode == 0, output
    assert learned(tmp_path) == [1, 2, 3]


def test_ctrl_c_ends_everything_and_the_same_folder_goes_on(tmp_path):
    demo = start(tmp_path, steps=500)
    wait_until(lambda: len(learned(tmp_path)) >= 2, "two steps")
    processes = started_by(demo)
    demo.send_signal(signal.SIGINT)
    output = output_of(demo)

    assert demo.returncode == 130, output
    assert "to go on" in output
    assert not alive(processes)
    reached = len(learned(tmp_path))

    again = start(tmp_path, steps=reached + 2)
    output = output_of(again)
    assert again.returncode == 0, output
    assert "as it is" not in output  # measured the first time, and remembered
    steps = learned(tmp_path)
    assert sorted(set(steps)) == list(range(1, reached + 3))


def test_a_killed_trainer_ends_the_demo_with_the_reason_and_training_goes_on_afterwards(tmp_path):
    demo = start(tmp_path, steps=500)
    wait_until(lambda: len(learned(tmp_path)) >= 2, "two steps")
    processes = started_by(demo)
    trainer_among(processes).send_signal(signal.SIGKILL)
    output = output_of(demo)

    assert demo.returncode == 1, output
    assert "the trainer ended before training was done (exit status 137)" in output
    assert not alive(processes)

    reached = len(learned(tmp_path))
    again = start(tmp_path, steps=reached + 1)
    output = output_of(again)
    assert again.returncode == 0, output
    steps = learned(tmp_path)
    assert set(steps) == set(range(1, reached + 2))
    assert len(steps) <= len(set(steps)) + 1  # at most the step of the kill was written down twice


def test_a_demo_that_is_killed_takes_its_processes_along(tmp_path):
    demo = start(tmp_path, steps=500)
    wait_until(lambda: len(learned(tmp_path)) >= 1, "a step")
    processes = started_by(demo)
    assert trainer_among(processes).is_running()
    demo.kill()
    output_of(demo)

    wait_until(lambda: not alive(processes), "the end of every process")
