"""Sweeps that are watched: every rollout is told, and one that is cancelled is written as that."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

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


def test_the_command_says_where_the_page_is(tmp_path: Path, capsys):
    words = ["--run-dir", str(tmp_path / "run"), "--plain", "--no-report", "--watch"]
    assert main(["evaluate", write(tmp_path), *words]) == 0
    assert "watch it at http://127.0.0.1:" in capsys.readouterr().out
    with SweepReader(tmp_path / "run") as reader:
        assert len(list(reader.samples())) == 18
