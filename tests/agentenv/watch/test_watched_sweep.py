"""Sweeps that are watched: every rollout is told, and one that is cancelled is written as that."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from agentenv.cli.main import main
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.runner import Sweep
from agentenv.evaluation.sources import open_source
from agentenv.evaluation.spec import SweepConfig
from agentenv.evaluation.store import SweepStore
from agentenv.task import Task
from agentenv.watch import Board, WatchedEnvironments, watching
from agentenv.yaml_file import read_yaml
from tests.agentenv.evaluation.test_environments import write
from tests.agentenv.tasks.task_dirs import LOCAL, write_task


class CancellingBoard(Board):
    """Withdraws the third rollout as soon as it begins."""

    def begin(
        self, trajectory_id: str, task: Task, cancel: Callable[[], None], label: str = ""
    ) -> None:
        super().begin(trajectory_id, task, cancel, label)
        self.cancel(3)


async def test_a_cancelled_sample_is_counted_and_left_for_the_next_run(tmp_path: Path):
    config = read_yaml(Path(write(tmp_path)), SweepConfig)
    store = await SweepStore.open(tmp_path / "run", config)
    environments = WatchedEnvironments()
    async with watching(announce=lambda url: None) as watch:
        board = CancellingBoard()
        watched = replace(watch, board=board)
        source = partial(open_source, watch=watched, environments=environments)
        sweep = Sweep(config, store, source=source)
        await sweep.run()
    await store.close()
    assert not sweep.complete
    assert sweep.counts.ended == 18
    assert sweep.counts.outcomes["cancelled"] == 1
    told = board.changes(0)["totals"]
    assert told["started"] == 18
    assert told["outcomes"] == sweep.counts.outcomes
    assert told["input_tokens"] > 0


async def test_models_stand_beside_tasks_and_replies_cost_what_the_sweep_says(tmp_path: Path):
    models = {name: {"price": {"input": 1.0, "output": 10.0}} for name in ("small", "large")}
    config = read_yaml(Path(write(tmp_path, models=models)), SweepConfig)
    store = await SweepStore.open(tmp_path / "run", config)
    environments = WatchedEnvironments()
    async with watching(announce=lambda url: None) as watch:
        source = partial(open_source, watch=watch, environments=environments)
        await Sweep(config, store, source=source).run()
        told = watch.board.changes(0)
    await store.close()
    with SweepReader(tmp_path / "run") as reader:
        costs = [stored.row.cost_usd for stored in reader.samples()]
    assert Counter(row["label"] for row in told["trajectories"]) == {"small": 18, "large": 18}
    assert told["totals"]["cost_usd"] == pytest.approx(sum(cost or 0.0 for cost in costs))
    assert told["totals"]["cost_usd"] > 0


@pytest.mark.sandbox
async def test_task_directories_are_told_with_their_steps_and_what_tests_printed(tmp_path: Path):
    test = "#!/bin/bash\necho looked at $(cat mark)\necho 1 > /logs/verifier/reward.txt\n"
    steps = LOCAL + '[[steps]]\nname = "one"\n[[steps]]\nname = "two"\n'
    files = {f"steps/{name}/instruction.md": f"Do {name}." for name in ("one", "two")}
    files |= {f"steps/{name}/solution/solve.sh": f"echo {name} > mark\n" for name in ("one", "two")}
    write_task(tmp_path / "tasks/sort", steps, files, instruction=None, tests=test, solution=None)
    values = {
        "tasks": {"ours": {"directory": str(tmp_path / "tasks"), "provider": "local"}},
        "models": {"oracle": {"agent": "oracle"}, "nop": {"agent": "nop"}},
    }
    config = SweepConfig.model_validate(values)
    store = await SweepStore.open(tmp_path / "run", config)
    async with watching(announce=lambda url: None) as watch:
        await Sweep(config, store, source=partial(open_source, watch=watch)).run()
        rows = {row["label"]: row for row in watch.board.changes(0)["trajectories"]}
        told = watch.board.changes(0, shown=rows["oracle"]["number"])
    await store.close()
    assert {(row["task"], row["reward"]) for row in rows.values()} == {("sort", 1.0)}
    assert set(rows) == {"oracle", "nop"}
    entries = [(entry["title"], entry["text"]) for entry in told["entries"]]
    assert [title for title, _ in entries] == [
        "Task",
        "Step of the task: one",
        "Tests of step one: reward 1",
        "Step of the task: two",
        "Tests of step two: reward 1",
        "Reward: 1",
        "Ended: scored, final_answer",
    ]
    assert [entries[place][1] for place in (2, 3, 4)] == [
        "looked at one\n",
        "Do two.",
        "looked at two\n",
    ]


def test_the_command_says_where_the_page_is(tmp_path: Path, capsys):
    words = ["--run-dir", str(tmp_path / "run"), "--plain", "--no-report", "--watch"]
    assert main(["evaluate", write(tmp_path), *words]) == 0
    assert "watch it at http://127.0.0.1:" in capsys.readouterr().out
    with SweepReader(tmp_path / "run") as reader:
        assert len(list(reader.samples())) == 18
