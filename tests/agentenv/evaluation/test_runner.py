"""Sweeps: complete, resumed, bounded, ended; without engine or sandbox."""

import asyncio
from typing import Any

import pytest

from agentenv.errors import RunDirectoryError, SweepError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.store import SweepStore
from agentenv.outcomes import Outcome
from tests.agentenv.evaluation.sweeps import by_seed, config, record, results, sweep_into


async def test_every_sample_is_taken_once(tmp_path):
    sweep = await sweep_into(tmp_path, config(seeds=[0, 1]))
    assert sweep.complete
    assert len(results(tmp_path)) == 5 * 2 * 2 * 2
    assert sweep.counts.ended == sweep.counts.planned == 40


async def test_results_do_not_depend_on_concurrency(tmp_path):
    for concurrency in (1, 4, 50):
        await sweep_into(tmp_path / str(concurrency), config(concurrency=concurrency))
    found = [results(tmp_path / str(concurrency)) for concurrency in (1, 4, 50)]
    assert found[0] == found[1] == found[2]


async def test_models_are_given_the_same_random_numbers_and_attempts_others(tmp_path):
    seeds: dict[str, list[Any]] = {}

    def note(source, task, seed, trajectory_id):
        seeds.setdefault(source.arm.model, []).append((task, seed))
        return by_seed(source, task, seed, trajectory_id)

    await sweep_into(tmp_path, config(), run_one=note)
    assert sorted(seeds["a"]) == sorted(seeds["b"])
    assert len(set(seeds["a"])) == 10


async def test_a_sweep_that_is_stopped_again_and_again_gives_the_same_results(tmp_path):
    await sweep_into(tmp_path / "whole", config())
    started = []
    for stop_after in (1, 4, 2, 7, None):
        noted: list[str] = []
        await sweep_into(tmp_path / "parts", config(), stop_after=stop_after, noted=noted)
        started.append(sum(note.startswith("run") for note in noted))
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert sum(started) <= 20 + 4 * 3  # the samples that were under way, at most, again


async def test_a_sweep_that_is_done_opens_nothing(tmp_path):
    await sweep_into(tmp_path, config())
    noted: list[str] = []
    sweep = await sweep_into(tmp_path, config(), noted=noted)
    assert sweep.complete
    assert sweep.counts.found == sweep.counts.planned == 20
    assert noted == []


async def test_models_attempts_tasks_settings_and_seeds_can_be_added_later(tmp_path):
    await sweep_into(tmp_path, config())
    more = config(
        models={"a": {}, "b": {}, "c": {}},
        attempts=3,
        tasks={"numbers": {"environment": "none", "count": 6}},
        seeds=[0, 5],
        settings={"default": {}, "cold": {"env": {"agent_temperature": 0.0}}},
    )
    before = results(tmp_path)
    sweep = await sweep_into(tmp_path, more)
    after = results(tmp_path)
    assert len(after) == 6 * 3 * 2 * 2 * 3
    assert {key: after[key] for key in before} == before
    assert sweep.counts.found == len(before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {"a": {}}}, "models.b: is gone"),
        ({"models": {"a": {"openai": {"model_name": "x"}}, "b": {}}}, "models.a.openai"),
        ({"attempts": 1}, "attempts: 1 instead of 2"),
        ({"seeds": [1]}, "seeds: \\[0\\] are gone"),
        ({"tasks": {"numbers": {"environment": "none", "count": 3}}}, "tasks.numbers.count"),
        ({"tasks": {"numbers": {"environment": "else", "count": 5}}}, "tasks.numbers.environment"),
        ({"settings": {"default": {"env": {"x": 1}}}}, "settings.default.env"),
    ],
)
async def test_another_sweep_is_refused_in_the_same_directory(tmp_path, changes, said):
    await sweep_into(tmp_path, config())
    with pytest.raises(SweepError, match=said):
        await SweepStore.open(tmp_path, config(**changes))
    store = await SweepStore.open(tmp_path, config(**changes), other=True)
    await store.close()


async def test_budget_prices_concurrency_and_secrets_may_change(tmp_path):
    servers: dict[str, Any] = {
        "a": {"openai": {"base_url": "http://x", "api_key": "canary-1"}},
        "b": {},
    }
    await sweep_into(tmp_path, config(models=servers))
    servers = {
        "a": {"openai": {"base_url": "http://x", "api_key": "canary-2"}, "price": {"input": 1}},
        "b": {},
    }
    changed = config(models=servers, concurrency=9, budget={"tokens": 5}, success_at=0.5)
    store = await SweepStore.open(tmp_path, changed)
    await store.close()
    assert b"canary" not in (tmp_path / "sweep.db").read_bytes()


async def test_other_tasks_under_the_same_names_are_refused(tmp_path):
    await sweep_into(tmp_path, config())
    store = await SweepStore.open(tmp_path, config())
    from agentenv.evaluation.schema import TaskEntry

    with pytest.raises(SweepError, match="task 0 of 'numbers' is 'x' now, and was '0'"):
        await store.tasks("numbers", [TaskEntry("x", "")])
    await store.close()


async def test_a_second_process_is_refused(tmp_path):
    store = await SweepStore.open(tmp_path, config())
    with pytest.raises(RunDirectoryError, match="in use by process"):
        await SweepStore.open(tmp_path, config())
    await store.close()
    await (await SweepStore.open(tmp_path, config())).close()


async def test_what_is_no_sweep_is_refused(tmp_path):
    (tmp_path / "sweep.db").write_text("not a database, but long enough to be taken for one" * 50)
    with pytest.raises((SweepError, RunDirectoryError), match="not a database"):
        await SweepStore.open(tmp_path, config())


async def test_infrastructure_is_tried_again_with_the_same_seed_and_never_counts_as_wrong(tmp_path):
    seeds: dict[str, list[int | None]] = {}

    def twice_lost(source, task, seed, trajectory_id):
        tries = seeds.setdefault(trajectory_id.partition(".")[0], [])
        tries.append(seed)
        if len(tries) < 3:
            return record(
                trajectory_id, None, outcome=Outcome.INFRASTRUCTURE_FAILED, cause="slot lost"
            )
        return by_seed(source, task, seed, trajectory_id)

    await sweep_into(tmp_path / "faulty", config(), run_one=twice_lost)
    await sweep_into(tmp_path / "sound", config())
    assert {key: value[:2] for key, value in results(tmp_path / "faulty").items()} == {
        key: value[:2] for key, value in results(tmp_path / "sound").items()
    }
    assert all(len(tries) == 3 and len(set(tries)) == 1 for tries in seeds.values())
    with SweepReader(tmp_path / "faulty") as reader:
        rows = [stored.row for stored in reader.samples()]
    assert {row.tries for row in rows} == {3}
    assert {row.output_tokens for row in rows} == {60}, "what lost tries used is counted"


async def test_what_can_never_begin_is_tried_once(tmp_path):
    def refused(source, task, seed, trajectory_id):
        if task != "2":
            return by_seed(source, task, seed, trajectory_id)
        cause = "the task wants a Windows sandbox"
        return record(trajectory_id, None, outcome=Outcome.INFRASTRUCTURE_FAILED, cause=cause)

    await sweep_into(tmp_path, config(), run_one=refused, is_final=True)
    with SweepReader(tmp_path) as reader:
        rows = [stored.row for stored in reader.samples()]
    assert {row.tries for row in rows} == {1}
    assert sum(row.reward is None for row in rows) == 4


async def test_what_infrastructure_lost_is_taken_again_by_the_next_run(tmp_path):
    def lost(source, task, seed, trajectory_id):
        if task == "2":
            return record(trajectory_id, None, outcome=Outcome.INFRASTRUCTURE_FAILED, cause="gone")
        return by_seed(source, task, seed, trajectory_id)

    sweep = await sweep_into(tmp_path / "parts", config(), run_one=lost)
    assert not sweep.complete
    assert sweep.counts.outcomes["infrastructure_failed"] == 4
    sweep = await sweep_into(tmp_path / "parts", config())
    assert sweep.counts.ended == 4
    await sweep_into(tmp_path / "whole", config())
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


async def test_a_sweep_that_loses_everything_gives_up(tmp_path):
    def lost(source, task, seed, trajectory_id):
        return record(trajectory_id, None, outcome=Outcome.INFRASTRUCTURE_FAILED, cause="no engine")

    noted: list[str] = []
    with pytest.raises(SweepError, match=r"samples in a row were lost .* no engine"):
        await sweep_into(tmp_path, config(), run_one=lost, noted=noted)
    assert noted.count("close a") == 1


async def test_a_token_budget_ends_it_when_it_is_spent(tmp_path):
    sweep = await sweep_into(tmp_path, config(budget={"tokens": 600}))
    assert sweep.counts.stopped == "budget.tokens=600 is spent"
    assert 5 <= len(results(tmp_path)) <= 5 + 3
    noted: list[str] = []
    sweep = await sweep_into(tmp_path, config(budget={"tokens": 600}), noted=noted)
    assert noted == [], "it stays spent"
    await sweep_into(tmp_path, config(budget={"tokens": 1_000_000}))
    assert len(results(tmp_path)) == 20


async def test_a_cost_budget_ends_it_when_it_is_spent(tmp_path):
    models = {"a": {"price": {"input": 1.0}}, "b": {"price": {"input": 1.0}}}
    made = config(budget={"cost_usd": 0.5}, models=models)
    sweep = await sweep_into(tmp_path, made, price=0.1)
    assert sweep.counts.stopped == "budget.cost_usd=0.5 is spent"
    assert sweep.counts.cost_usd == pytest.approx(0.1 * len(results(tmp_path)))


async def test_a_time_budget_ends_samples_that_hang(tmp_path):
    noted: list[str] = []
    sweep = await sweep_into(tmp_path, config(budget={"wall_s": 0.05}), hang=True, noted=noted)
    assert sweep.counts.stopped == "budget.wall_s=0.05 is spent"
    assert noted[-2:] == ["cancel 3", "close a"]
    assert results(tmp_path) == {}


async def test_being_cancelled_closes_everything(tmp_path):
    noted: list[str] = []
    running = asyncio.create_task(sweep_into(tmp_path, config(), hang=True, noted=noted))
    while sum(note.startswith("run") for note in noted) < 3:
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert noted[-1] == "close a"
    await (await SweepStore.open(tmp_path, config())).close()


async def test_a_source_that_cannot_be_opened_ends_the_sweep_with_its_reason(tmp_path):
    def broken(source, task, seed, trajectory_id):
        raise RuntimeError("a fault of the source itself")

    noted: list[str] = []
    with pytest.raises(RuntimeError, match="a fault of the source itself"):
        await sweep_into(tmp_path, config(), run_one=broken, noted=noted)
    assert noted[-1] == "close a"


async def test_a_store_that_cannot_write_ends_the_sweep(tmp_path):
    noted: list[str] = []

    def spoil(source, task, seed, trajectory_id):
        if task == "2":
            import sqlite3

            with sqlite3.connect(tmp_path / "sweep.db") as db:
                db.execute("drop table if exists casts")
                db.execute("drop table if exists trajectories")
            db.close()
        return by_seed(source, task, seed, trajectory_id)

    with pytest.raises(SweepError, match="cannot take a sample"):
        await sweep_into(tmp_path, config(concurrency=1), run_one=spoil, noted=noted)
    assert len([note for note in noted if note.startswith("run")]) == 3
