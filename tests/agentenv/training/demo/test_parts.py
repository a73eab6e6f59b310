"""The demo's parts, each alone."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from agentenv.errors import ConfigError
from agentenv.evaluation.statistics import Estimate
from agentenv.training.demo.config import DemoConfig, EvaluationConfig
from agentenv.training.demo.curve import draw_curve, running_mean
from agentenv.training.demo.display import (
    LineDisplay,
    LiveDisplay,
    result_table,
    sparkline,
)
from agentenv.training.demo.evaluation import (
    EvaluationError,
    mean_gain,
    mean_score,
    task_scores,
)
from agentenv.training.demo.processes import (
    DemoProcess,
    DemoProcessError,
    free_port,
    listens,
)
from agentenv.training.demo.run import Demo, DemoOptions
from agentenv.training.service import read_steps
from agentenv.yaml_file import read_yaml
from tests.agentenv.fake_env import make_env
from tests.processes import process_of

pytestmark = pytest.mark.torch
SHIPPED = Path(__file__).parents[4] / "configs/train_demo.yaml"


def step(number: int, reward: float) -> dict[str, Any]:
    stats = {"rows": 8, "mean_ratio": 1.0, "clipped_share": 0.01, "seconds": 0.5}
    return {
        "step": number,
        "mean_score": reward,
        "oldest_version": number - 2,
        "wait_s": 0.1,
        "stats": stats,
    }


# ---- configuration ----


def test_the_shipped_configuration_trains_on_one_split_and_measures_on_the_other():
    config = read_yaml(SHIPPED, DemoConfig)

    assert config.env["split"] == "train"
    assert config.evaluation.env["split"] == "held_out"
    assert config.evaluation.target_gain == 0.30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("environment: [", "is no YAML"),
        ("{}", "environment: Field required"),
        ("environment: x\ntraining: {lr: 1}", "training.lr: Extra inputs"),
        (
            "environment: x\nenv: {group_size: 7}",
            "batch_size=64 is no multiple of env.group_size=7",
        ),
        ("environment: x\ntraining: {steps: 0}", "training.steps"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_its_keys(text, said, tmp_path):
    path = tmp_path / "demo.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=said) as caught:
        read_yaml(path, DemoConfig)
    assert str(path) in str(caught.value)


# ---- measuring ----


def test_the_interval_is_over_tasks_and_not_over_trajectories():
    alike = [[1.0] * 50, [0.0] * 50] * 5  # ten tasks, each always solved or never
    apart = [[1.0, 0.0] * 25] * 9 + [[1.0, 0.0] * 24 + [1.0, 1.0]]  # each solved half of the time

    wide, narrow = mean_score(alike), mean_score(apart)

    assert wide.value == 0.5
    assert narrow.value == pytest.approx(0.502)
    assert width(wide) > 0.4
    assert width(narrow) < 0.01


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_a_policy_that_solves_everything_is_not_claimed_to_be_certain_to():
    found = mean_score([[1.0, 1.0]] * 10)

    assert (found.value, found.high) == (1.0, 1.0)
    assert width(found) > 0.2


def test_the_gain_is_paired_so_that_what_all_tasks_gain_alike_is_narrow():
    before = [[0.0], [0.5], [0.1], [0.3]]
    after = [[0.4], [0.9], [0.5], [0.71]]

    gain = mean_gain(before, after)

    assert gain.value == pytest.approx(0.4025)
    assert width(gain) < 0.011


def test_scores_of_other_tasks_cannot_be_compared():
    with pytest.raises(ValueError, match="not the same tasks"):
        mean_gain([[1.0]], [[1.0], [0.0]])
    with pytest.raises(ValueError, match="no task was measured"):
        mean_score([])


async def test_the_same_policy_is_measured_the_same_whatever_the_concurrency():
    one = await task_scores(make_env(group_size=3), tasks=5, workers=1)
    other = await task_scores(make_env(group_size=3), tasks=5, workers=5)

    assert one == other
    assert [len(scores) for scores in one] == [3] * 5
    assert len({tuple(scores) for scores in one}) > 1


async def test_an_item_that_cannot_be_had_is_an_error_and_no_score():
    class Short(type(make_env())):  # type: ignore[misc]
        async def setup_agent_env(self) -> None:
            await super().setup_agent_env()
            self.items = 2

    with pytest.raises(EvaluationError, match="task 2 of 3"):
        await task_scores(make_env(env_cls=Short), tasks=3, workers=2)


# ---- showing ----


def test_a_running_mean_looks_back_only():
    assert running_mean([1.0, 0.0, 0.0, 1.0], 2) == [1.0, 0.5, 0.0, 0.5]
    assert sparkline([0.0, 0.5, 1.0, 7.0]) == "▁▅██"


def test_lines_are_printed_once_for_each_step():
    console = Console(record=True, width=200, force_terminal=False)
    with closing(LineDisplay(console, 3)) as display:
        display.update([], 1.0)
        display.update([step(1, 0.5)], 2.0)
        display.update([step(1, 0.5), step(2, 0.7)], 3.0)
    lines = console.export_text().splitlines()

    assert len(lines) == 2
    assert "step   2/3  reward 0.700 (mean of 7: 0.600)" in lines[1]
    assert "oldest weights 1 back" in lines[1]


def test_the_panel_shows_that_it_waits_and_then_the_reward():
    console = Console(record=True, width=120, force_terminal=True)
    with closing(LiveDisplay(console, 3)) as display:
        display.update([], 1.0)
        display.update([step(1, 0.5)], 2.0)
    text = console.export_text()

    assert "waiting for the first batch" in text
    assert "reward" in text


def test_the_table_gives_per_cent_and_points():
    console = Console(record=True, width=120)
    before = Estimate(0.5, 0.4, 0.6, 10, "bootstrap")
    after, gain = Estimate(0.8, None, None, 1, "none"), Estimate(0.3, 0.2, 0.4, 10, "bootstrap")

    console.print(result_table(before, after, gain, trajectories=8))

    text = console.export_text()
    assert "50.0 %" in text
    assert [cell.strip() for cell in text.split("after")[1].splitlines()[0].split("│")] == [
        "",
        "80.0 %",
        "-",
        "",
    ]
    assert "20.0 to 40.0" in text


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_the_curve_is_a_picture_also_of_no_steps_at_all(name, tmp_path):
    before, after = Estimate(0.1, 0.0, 0.2, 5, "bootstrap"), Estimate(0.4, None, None, 1, "none")
    draw_curve([step(1, 0.2), step(2, 0.4)], tmp_path / name, before=before, after=after)
    assert (tmp_path / name).stat().st_size > 1_000
    draw_curve([], tmp_path / name)


def test_steps_are_read_while_they_are_written_and_the_last_word_on_a_step_counts(tmp_path):
    path = tmp_path / "steps.jsonl"
    assert read_steps(path) == []

    whole = [json.dumps(step(number, reward)) for number, reward in ((1, 0.1), (2, 0.2), (2, 0.9))]
    path.write_text("\n".join(whole) + '\n{"step": 3, "mea')

    assert [(each["step"], each["mean_score"]) for each in read_steps(path)] == [(1, 0.1), (2, 0.9)]


# ---- processes ----

STARTS_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


async def test_a_process_is_stopped_with_everything_it_started(tmp_path):
    log = tmp_path / "log"
    process = await DemoProcess.start("parent", ["-c", STARTS_A_CHILD], log, grace_s=2)
    await process.ready(lambda: _is_written(log), 30)
    child = process_of(int(log.read_text()))

    await process.stop()
    await process.stop()

    assert not child.alive
    assert process.status is not None


async def test_a_process_that_ends_before_it_answers_is_told_with_the_end_of_its_log(tmp_path):
    process = await DemoProcess.start(
        "trainer", ["-c", "print('why'); raise SystemExit(3)"], tmp_path / "log"
    )
    try:
        with pytest.raises(DemoProcessError, match=r"trainer ended before.*status 3[\s\S]*why"):
            await process.ready(_never, 30)
    finally:
        await process.stop()


async def test_a_process_that_never_answers_is_told_after_its_time(tmp_path):
    process = await DemoProcess.start(
        "server", ["-c", "import time; time.sleep(600)"], tmp_path / "log", grace_s=0.5
    )
    try:
        with pytest.raises(DemoProcessError, match=r"did not answer within 0\.2 s"):
            await process.ready(_never, 0.2)
    finally:
        await process.stop()


async def test_listening_is_told_apart_from_a_free_port():
    port = free_port()
    assert not await listens(port)
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", port)
    async with server:
        assert await listens(port)


async def _never() -> bool:
    return False


async def _is_written(path: Path) -> bool:
    return path.read_text().endswith("\n")


async def test_a_measurement_that_takes_too_long_is_an_error_with_the_setting(tmp_path):
    evaluation = EvaluationConfig(tasks=2, samples=1, timeout_s=0.05)
    demo = Demo(
        DemoConfig(environment="echo", evaluation=evaluation),
        DemoOptions(folder=tmp_path / "run", model="unused"),
        lambda model, env: make_env(latency_s=600),
        Console(record=True),
    )

    with pytest.raises(EvaluationError, match=r"evaluation\.timeout_s=0\.05"):
        await demo.run()
