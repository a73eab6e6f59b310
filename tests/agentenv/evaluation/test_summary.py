"""Summaries, comparisons, exports and scoring again, of small sweeps."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from agentenv.errors import ConfigError, SweepError
from agentenv.evaluation.export import COLUMNS, export
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.rescorer import rescore
from agentenv.evaluation.store import SweepStore
from agentenv.evaluation.summary import Choice, chosen_arms, compare, summarise
from agentenv.evaluation.terminal import difference_table, lost_lines, sweep_tables
from agentenv.outcomes import Outcome
from tests.agentenv.evaluation.sweeps import NumbersSource, config, record, sweep_into


def by_table(rewards: dict[str, list[float | None]]) -> Any:
    """Model `a` gets these, by task and attempt; model `b` the opposite. None: infrastructure fails."""
    taken: dict[tuple[str, str], int] = {}

    def run(source: NumbersSource, task: str, seed: int | None, trajectory_id: str) -> Any:
        place = taken.get((source.arm.model, task), 0)
        taken[(source.arm.model, task)] = place + 1
        reward = rewards[task][place]
        if reward is None:
            lost = Outcome.INFRASTRUCTURE_FAILED
            return record(trajectory_id, None, outcome=lost, cause="\x1b[31mslot lost")
        return record(trajectory_id, reward if source.arm.model == "a" else 1 - reward)

    return run


async def swept(path: Path, rewards: dict[str, list[float | None]], **changes: Any) -> Path:
    attempts = len(next(iter(rewards.values())))
    made = config(
        tasks={"numbers": {"environment": "none", "count": len(rewards)}},
        attempts=attempts,
        concurrency=1,
        retry={"attempts": 1},
        **changes,
    )
    await sweep_into(path, made, run_one=by_table(rewards))
    return path


async def test_a_table_worked_out_by_hand(tmp_path):
    table: dict[str, list[float | None]] = {
        "0": [1.0, 1.0, 1.0, 1.0],
        "1": [1.0, 0.0, 0.0, 0.0],
        "2": [0.0, 0.0, None, None],
    }
    with SweepReader(await swept(tmp_path, table)) as reader:
        a, b = summarise(reader)
    assert (a.arm.model, a.planned, a.ended, a.scored, a.lost, a.tasks) == ("a", 12, 12, 10, 2, 3)
    assert a.outcomes == {"scored": 10, "infrastructure_failed": 2}
    assert a.score is not None
    assert b.score is not None
    assert a.score.value == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert b.score.value == pytest.approx((0 + 3 / 4 + 1) / 3), "lost samples are not wrong ones"
    assert {k: found.value for k, found in a.pass_at.items()} == pytest.approx(
        {1: (1 + 1 / 4 + 0) / 3, 2: (1 + 1 / 2 + 0) / 3, 3: (1 + 3 / 4) / 2, 4: 1.0}
    )
    assert [a.pass_at[k].tasks for k in (1, 2, 3, 4)] == [3, 3, 2, 2]
    assert a.pass_hat[2].value == pytest.approx(1 / 3)
    assert (a.input_tokens, a.output_tokens) == (1200, 240)
    assert (a.tool_calls, a.tool_errors) == (12, 7)
    assert a.latency_p50_s == 0.5
    assert a.causes == (("\x1b[31mslot lost", 2),)


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1.0, None]), min_size=3, max_size=3), min_size=1, max_size=6
    )
)
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_summaries_of_random_tables_agree_with_counting(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("sweep")
    table = {str(task): list(row) for task, row in enumerate(rows)}
    if sum(reward is None for row in rows for reward in row) >= 8:
        return  # a sweep that loses so many in a row gives up
    with SweepReader(await swept(path, table)) as reader:
        a, _ = summarise(reader)
    means = [
        np.mean([r for r in row if r is not None])
        for row in rows
        if any(r is not None for r in row)
    ]
    assert a.lost == sum(reward is None for row in rows for reward in row)
    assert (a.score is None) == (not means)
    if a.score is not None:
        assert a.score.value == pytest.approx(np.mean(means))
        assert a.pass_at[1].value == pytest.approx(np.mean(means))


async def test_models_of_one_sweep_are_compared_by_task(tmp_path):
    table: dict[str, list[float | None]] = {str(task): [float(task > 0)] for task in range(6)}
    path = await swept(tmp_path, table)
    with SweepReader(path) as reader:
        a = chosen_arms(reader, Choice("a"))
        b = chosen_arms(reader, Choice("b", "default"))
        found = compare(reader, a, reader, b)
        with pytest.raises(SweepError, match="more than one model or settings; name one as"):
            chosen_arms(reader, Choice())
        with pytest.raises(SweepError, match=r"no such model.* a@default, b@default"):
            chosen_arms(reader, Choice("c"))
    assert (found.tasks, found.better, found.worse) == (6, 1, 5)
    assert found.p_value == pytest.approx(scipy.stats.binomtest(1, 6).pvalue)
    assert found.method == "McNemar, exact"


async def test_tables_on_a_terminal_hold_nothing_that_commands_it(tmp_path):
    path = await swept(tmp_path, {"0": [None, 1.0], "1": [0.5, 0.25]})
    console = Console(width=80, record=True, force_terminal=False)
    with SweepReader(path) as reader:
        summaries = summarise(reader)
        for shown in [*sweep_tables(summaries, "\x1b[2Jtitle"), *lost_lines(summaries)]:
            console.print(shown)
        found = compare(
            reader, chosen_arms(reader, Choice("a")), reader, chosen_arms(reader, Choice("b"))
        )
        console.print(difference_table(found, "a", "b"))
    text = console.export_text()
    assert "\x1b" not in text
    assert "1 x \\x1b[31mslot lost" in text
    assert "pass@1" in text
    assert "pass@2" in text
    assert "B - A" in text


async def test_exports_hold_every_sample(tmp_path):
    path = await swept(tmp_path / "s", {"0": [1.0, None], "1": [0.5, 0.0]}, seeds=[None])
    with SweepReader(path) as reader:
        for name in ("x.csv", "x.jsonl", "x.parquet"):
            assert export(reader, tmp_path / name) == 8
        export(reader, tmp_path / "t.jsonl", trajectories=True)
        with pytest.raises(ConfigError, match="must end with"):
            export(reader, tmp_path / "x.xlsx")
        with pytest.raises(ConfigError, match="alone"):
            export(reader, tmp_path / "x.csv", trajectories=True)
    with (tmp_path / "x.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    import pyarrow.parquet as pq

    columns = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert list(table[0]) == list(COLUMNS) == list(columns[0])
    assert [row["reward"] for row in lines] == [row["reward"] for row in columns]
    assert [row["reward"] or "" for row in table] == [
        "" if row["reward"] is None else str(row["reward"]) for row in lines
    ]
    assert {row["sample_id"] for row in table} == {row["sample_id"] for row in lines}
    assert len({row["sample_id"] for row in table}) == 8
    assert {row["seed"] for row in lines} == {None}
    first = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    assert first["trajectory"]["final_response"] == "done"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "s",
        "t.jsonl",
        "x.csv",
        "x.jsonl",
        "x.parquet",
    ]


async def test_texts_that_a_spreadsheet_would_run_are_made_inert(tmp_path):
    def run(source, task, seed, trajectory_id):
        lost = Outcome.VERIFIER_FAILED
        return record(trajectory_id, None, outcome=lost, cause="=HYPERLINK(1)")

    await sweep_into(tmp_path / "s", config(), run_one=run)
    with SweepReader(tmp_path / "s") as reader:
        export(reader, tmp_path / "x.csv")
    assert ",'=HYPERLINK(1)," in (tmp_path / "x.csv").read_text()


async def test_scoring_again_changes_scores_and_runs_nothing(tmp_path):
    made = config()
    await sweep_into(tmp_path, made)
    noted: list[str] = []
    store = await SweepStore.open(tmp_path, made)
    counts = await rescore(made, store, source=lambda c, arm: NumbersSource(c, arm, noted=noted))
    await store.close()
    assert not [note for note in noted if note.startswith("run")]
    assert (counts.scored, counts.changed, counts.failed) == (16, 16, 4)
    with SweepReader(tmp_path) as reader:
        names = {info.task: info.name for info in reader.tasks()}
        for stored in reader.samples():
            judged = names[stored.row.task] != "3"
            assert stored.row.reward == (0.25 if judged else None)
            assert stored.row.first_reward in (0.0, 1.0)
            trajectory = reader.trajectory(stored.sample)
            assert trajectory["score"] == stored.row.reward
            assert trajectory["final_response"] != ""


def test_a_directory_without_a_sweep_is_named(tmp_path):
    with pytest.raises(SweepError, match="holds no sweep"):
        SweepReader(tmp_path)
