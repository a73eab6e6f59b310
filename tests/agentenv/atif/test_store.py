import asyncio
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agentenv.atif import from_rollout, rollout_images
from agentenv.atif.recording import recorded
from agentenv.atif.store import MAX_PENDING, TRAJECTORIES_FILE, Trajectories, TrajectoryLog
from agentenv.errors import RunDirectoryError
from agentenv_tools.schema import ToolCall, ToolResult
from tests.agentenv.atif.records import AGENT, PIXEL, record, step, two_step_record
from tests.agentenv.cli.cli_env import CliEnv

ROOT = Path(__file__).parents[3]


async def written(folder: Path, *records: object) -> Trajectories:
    log = TrajectoryLog(folder / TRAJECTORIES_FILE, AGENT)
    for entry in records:
        log.add(entry, "Do it.")  # type: ignore[arg-type]
    await log.close()
    return Trajectories(folder)


async def test_a_trajectory_is_read_as_it_would_have_been_made_at_once(tmp_path: Path):
    made = two_step_record()
    stored = await written(tmp_path, made)
    assert stored.read("t-1") == from_rollout(made, agent=AGENT)


async def test_images_are_kept_and_come_back_by_their_paths(tmp_path: Path):
    look = ToolCall("look", uniq_id="c")
    shown = record([step(1, look, results=[ToolResult(True, images=(PIXEL,))])])
    stored = await written(tmp_path, shown)
    assert stored.images("t-1") == rollout_images(shown) != {}


async def test_they_are_listed_in_the_order_in_which_they_ended(tmp_path: Path):
    names = [f"t-{number}" for number in range(MAX_PENDING * 2)]
    stored = await written(tmp_path, *(two_step_record(trajectory_id=name) for name in names))
    summaries = list(stored.summaries())
    assert [entry.trajectory_id for entry in summaries] == names
    assert {(entry.outcome, entry.reward, entry.steps) for entry in summaries} == {
        ("scored", 0.5, 4)
    }


async def test_a_later_run_extends_the_file(tmp_path: Path):
    await written(tmp_path, two_step_record())
    stored = await written(tmp_path, two_step_record(trajectory_id="t-2"))
    assert [entry.trajectory_id for entry in stored.summaries()] == ["t-1", "t-2"]


async def test_they_can_be_read_while_a_run_writes(tmp_path: Path):
    log = TrajectoryLog(tmp_path / TRAJECTORIES_FILE, AGENT)
    log.add(two_step_record(), "Do it.")
    async with asyncio.timeout(30):
        while not log.written:
            await asyncio.sleep(0.01)
    assert Trajectories(tmp_path).read("t-1").trajectory_id == "t-1"
    await log.close()


async def test_whoever_adds_too_many_waits_until_they_are_written(tmp_path: Path):
    log = TrajectoryLog(tmp_path / TRAJECTORIES_FILE, AGENT)
    for number in range(MAX_PENDING * 4):
        log.add(two_step_record(trajectory_id=f"t-{number}"), "Do it.")
    async with asyncio.timeout(60):
        await log.room()
    await log.close()
    assert log.written == MAX_PENDING * 4


async def test_a_record_that_cannot_be_made_one_costs_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    made = two_step_record()
    assert made.result is not None
    odd = replace(made, trajectory_id="odd", result=replace(made.result, messages=(3,)))  # type: ignore[arg-type]
    stored = await written(tmp_path, odd, made)
    assert [entry.trajectory_id for entry in stored.summaries()] == ["t-1"]
    assert "lacks 1 trajectories" in caplog.text


async def test_a_file_that_cannot_be_written_is_warned_of_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / TRAJECTORIES_FILE).write_bytes(
        b"no database, but long enough to look like a file of its own" * 20
    )
    log = TrajectoryLog(tmp_path / TRAJECTORIES_FILE, AGENT)
    for number in range(3):
        log.add(two_step_record(trajectory_id=f"t-{number}"), "Do it.")
    await log.close()
    assert log.lost == 3
    assert caplog.text.count("cannot be written:") == 1
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        Trajectories(tmp_path)


async def test_an_id_may_be_given_by_its_beginning(tmp_path: Path):
    stored = await written(
        tmp_path, *(two_step_record(trajectory_id=name) for name in ("ab-1", "ab-2", "cd", "ab"))
    )
    assert stored.find("cd") == stored.find("c") == "cd"
    assert stored.find("ab") == "ab"
    for name in ("a", "%", "zz", ""):
        with pytest.raises(RunDirectoryError, match="trajector"):
            stored.find(name)
    with pytest.raises(RunDirectoryError, match="no trajectory"):
        stored.read("a")


async def test_a_damaged_entry_is_named(tmp_path: Path):
    stored = await written(tmp_path, two_step_record())
    with sqlite3.connect(stored.path) as connection:
        connection.execute("update trajectories set tokens = x'00'")
    connection.close()
    with pytest.raises(RunDirectoryError, match="'t-1' cannot be read"):
        stored.read("t-1")


def test_a_folder_without_any_says_what_writes_them(tmp_path: Path):
    with pytest.raises(RunDirectoryError, match="record_trajectories"):
        Trajectories(tmp_path)


@pytest.mark.parametrize(
    ("setting", "default", "kept"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
async def test_whether_they_are_kept_is_the_configurations_word_and_else_the_commands(
    setting: bool | None, default: bool, kept: bool, tmp_path: Path
):
    config, servers = CliEnv.config_init()
    env = CliEnv(config.model_copy(update={"record_trajectories": setting}), servers)
    async with recorded(env, tmp_path / "run", default=default) as log:
        assert (log is not None) is kept
        assert env.runtime.trajectories is log
    assert env.runtime.trajectories is None
    assert not (tmp_path / "run").exists(), "without a rollout there is nothing to keep"


async def test_a_rollout_that_is_withdrawn_leaves_one_too(tmp_path: Path):
    config, servers = CliEnv.config_init()
    env = CliEnv(config.model_copy(update={"latency_s": 3600.0}), servers)
    async with recorded(env, tmp_path, default=True) as log:
        await env.setup()
        running = asyncio.create_task(env.collect_trajectory(0))
        async with asyncio.timeout(60):
            while not env.runtime.policy.in_use:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await env.shutdown()
    assert log is not None
    (entry,) = Trajectories(tmp_path).summaries()
    assert entry.outcome == "cancelled"
    assert Trajectories(tmp_path).read(entry.trajectory_id).steps[0].source == "user"


WRITER = """
import asyncio
from pathlib import Path
from agentenv.atif.store import TRAJECTORIES_FILE, TrajectoryLog
from tests.agentenv.atif.records import AGENT, two_step_record

async def write():
    log = TrajectoryLog(Path(TRAJECTORIES_FILE), AGENT)
    for number in range(40):
        log.add(two_step_record(trajectory_id=f"t-{number}"), "Do it.")
    while log.written < 40:
        await asyncio.sleep(0.01)
    print("written", flush=True)
    await asyncio.sleep(3600)

asyncio.run(write())
"""


@pytest.mark.slow
def test_what_was_written_outlives_a_killed_run(tmp_path: Path):
    path = os.pathsep.join(str(ROOT / part) for part in ("", "backends", "tools", "environments"))
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.kill()
    stored = Trajectories(tmp_path)
    names = [entry.trajectory_id for entry in stored.summaries()]
    assert names == [f"t-{number}" for number in range(40)]
    assert all(stored.read(name).trajectory_id == name for name in names)
