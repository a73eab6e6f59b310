import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from agentenv.errors import RunDirectoryError
from agentenv.run.directory import GROUPS_FILE, RunDirectory, read_groups
from agentenv.run.record import GroupRecord
from tests.agentenv.run.records import group

ROOT = Path(__file__).parents[3]


async def _write(path: Path, *records: GroupRecord, extend: bool = False) -> None:
    directory = await RunDirectory.open(path, extend=extend)
    for record in records:
        await directory.append(record)
    await directory.close()


async def test_groups_read_back_as_they_were_written(tmp_path):
    records = [group(0), group(1, (0.5, 0.5), text="\x1b[2J \u202e \U0001f600 \u2028")]
    await _write(tmp_path / "run", *records)
    assert list(read_groups(tmp_path / "run")) == records


async def test_a_line_holds_the_fourteen_keys_of_a_scored_group_at_its_top(tmp_path):
    await _write(tmp_path, group(3))
    line = json.loads((tmp_path / GROUPS_FILE).read_bytes())
    assert line["scores"] == [0.0, 1.0]
    assert set(group(3).group) <= set(line)
    assert line["schema_version"] == 1
    assert line["trajectories"][1]["sequences"][0]["row"] == 1


async def test_many_appends_at_once_give_whole_lines(tmp_path):
    directory = await RunDirectory.open(tmp_path)
    await asyncio.gather(*(directory.append(group(number)) for number in range(40)))
    await directory.close()
    assert {record.group_id for record in read_groups(tmp_path)} == {f"g{n}" for n in range(40)}


async def test_a_cancelled_append_tears_nothing(tmp_path):
    directory = await RunDirectory.open(tmp_path)
    task = asyncio.create_task(directory.append(group(0, text="x" * 5_000_000)))
    await asyncio.sleep(0)
    task.cancel()
    await directory.append(group(1))
    await directory.close()
    assert [record.group_id for record in read_groups(tmp_path)][-1] == "g1"


async def test_a_full_disk_is_told_and_leaves_no_torn_line(tmp_path):
    directory = await RunDirectory.open(tmp_path)
    await directory.append(group(0))
    size = (tmp_path / GROUPS_FILE).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, limits[1]))
    try:
        with pytest.raises(
            RunDirectoryError, match=r"groups.jsonl cannot take group g1: File too large"
        ):
            await directory.append(group(1, text="x" * 50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / GROUPS_FILE).stat().st_size == size
    await directory.append(group(2))
    await directory.close()
    assert [record.group_id for record in read_groups(tmp_path)] == ["g0", "g2"]


async def test_a_directory_with_groups_is_not_mixed_with_another_run(tmp_path):
    await _write(tmp_path, group(0))
    with pytest.raises(RunDirectoryError, match="already holds 1 groups"):
        await RunDirectory.open(tmp_path)
    await _write(tmp_path, group(1), extend=True)
    assert len(list(read_groups(tmp_path))) == 2


async def test_a_torn_last_line_is_passed_over_and_cut_off_when_the_run_goes_on(tmp_path, caplog):
    await _write(tmp_path, group(0), group(1))
    file = tmp_path / GROUPS_FILE
    os.truncate(file, file.stat().st_size - 20)
    assert [record.group_id for record in read_groups(tmp_path)] == ["g0"]
    assert "line 2" in caplog.text
    await _write(tmp_path, group(2), extend=True)
    assert [record.group_id for record in read_groups(tmp_path)] == ["g0", "g2"]


async def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    await _write(tmp_path, group(0))
    file = tmp_path / GROUPS_FILE
    os.truncate(file, file.stat().st_size - 1)
    await _write(tmp_path, group(1), extend=True)
    assert [record.group_id for record in read_groups(tmp_path)] == ["g0", "g1"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b'{"schema_version": 1, "traj\n', "JSONDecodeError"),
        (b'{"schema_version": 99}\n', "schema_version 99"),
    ],
)
async def test_damage_in_the_middle_is_named_and_never_lost_silently(tmp_path, damage, reason):
    await _write(tmp_path, group(0))
    file = tmp_path / GROUPS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole + damage + whole)
    with pytest.raises(RunDirectoryError, match=rf"groups.jsonl, line 2 .*{reason}"):
        list(read_groups(tmp_path))
    with pytest.raises(RunDirectoryError, match="line 2"):
        await RunDirectory.open(tmp_path, extend=True)
    assert file.read_bytes() == whole + damage + whole


async def test_a_missing_run_directory_is_named(tmp_path):
    with pytest.raises(RunDirectoryError, match="nowhere"):
        list(read_groups(tmp_path / "nowhere"))


async def test_a_second_user_is_refused_with_the_first_ones_name(tmp_path):
    directory = await RunDirectory.open(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()} on "):
        await RunDirectory.open(tmp_path)
    await directory.append(group(0))
    await directory.close()
    await _write(tmp_path, group(1), extend=True)


async def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import asyncio, sys, time\n"
        "from agentenv.run.directory import RunDirectory\n"
        "async def main():\n"
        "    directory = await RunDirectory.open(sys.argv[1])\n"
        "    print('open', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(RunDirectoryError, match=f"in use by process {process.pid} on "):
            await RunDirectory.open(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert (tmp_path / "run.lock").exists()
    await _write(tmp_path, group(0))
    assert not (tmp_path / "run.lock").exists()


async def test_config_and_summary_are_written_without_secrets(tmp_path):
    directory = await RunDirectory.open(tmp_path)
    await directory.write_config(
        {"env": {"group_size": 8}, "openai": [{"api_key": SecretStr("canary")}]}
    )
    await directory.write_summary({"groups": 1, "token": "canary", "tokens": 12})
    await directory.close()
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == {"env": {"group_size": 8}, "openai": [{"api_key": "***"}]}
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "groups": 1,
        "token": "***",
        "tokens": 12,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        GROUPS_FILE,
        "summary.json",
    ]


async def test_closing_twice_is_no_error_and_appending_after_it_is(tmp_path):
    directory = await RunDirectory.open(tmp_path)
    await directory.close()
    await directory.close()
    with pytest.raises(RunDirectoryError, match="closed"):
        await directory.append(group(0))


async def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="cannot be used"):
        await RunDirectory.open(tmp_path / "file")
