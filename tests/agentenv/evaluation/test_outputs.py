"""The files that samples leave: kept whole, named by their rows, and none besides."""

import sqlite3
from typing import Any

import httpx
import pytest

from agentenv.evaluation.export import rows
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.report.server import SweepServer
from agentenv.evaluation.store import SweepStore
from agentenv.outcomes import Outcome
from agentenv_tools.serving import ServeSettings
from tests.agentenv.evaluation.sweeps import by_seed, config, outputs, record, sweep_into


async def test_each_sample_keeps_its_files_in_a_folder_that_its_row_names(tmp_path):
    await sweep_into(tmp_path, config(), writes=True)
    kept = outputs(tmp_path)
    assert len(kept) == 20
    for name, folder in kept.items():
        assert (folder / "agent/log.txt").read_text() == name
        assert folder.parent.name == name[:2], "spread over several folders"
    with SweepReader(tmp_path) as reader:
        named = [row["output_dir"] for row in rows(reader)]
    assert sorted(named) == sorted(f"{f.relative_to(tmp_path)}" for f in kept.values())


async def test_samples_that_leave_no_files_have_no_folder(tmp_path):
    await sweep_into(tmp_path, config())
    assert outputs(tmp_path) == {}
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("wanted", [False, "failed"])
async def test_files_are_kept_of_those_that_are_wanted(tmp_path, wanted):
    await sweep_into(tmp_path, config(keep_outputs=wanted), writes=True)
    kept = {(folder / "result.json").read_text() for folder in outputs(tmp_path).values()}
    assert kept == ({"0.0"} if wanted else set())


async def test_what_a_lost_try_and_a_lost_sample_left_gives_way_to_what_takes_its_place(tmp_path):
    def lost(source: Any, task: str, seed: int | None, trajectory_id: str) -> Any:
        if task == "2":
            return record(trajectory_id, None, outcome=Outcome.INFRASTRUCTURE_FAILED, cause="gone")
        return by_seed(source, task, seed, trajectory_id)

    await sweep_into(tmp_path, config(), writes=True, run_one=lost)
    first = outputs(tmp_path)
    assert {name[-2:] for name in first} == {".1", ".3"}, "of three tries the last"
    await sweep_into(tmp_path, config(), writes=True)
    after = outputs(tmp_path)
    assert len(after) == 20
    assert sum(folder in first.values() for folder in after.values()) == 16


async def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    await sweep_into(tmp_path, config(), writes=True)
    kept = outputs(tmp_path)
    half = tmp_path / "outputs" / "ab" / "abc-1"
    half.mkdir(parents=True)
    (half / "result.json").write_text("half")
    await (await SweepStore.open(tmp_path, config())).close()
    assert outputs(tmp_path) == kept


async def test_samples_that_were_cut_off_leave_nothing(tmp_path):
    await sweep_into(tmp_path, config(budget={"wall_s": 0.05}), writes=True, hang=True)
    assert outputs(tmp_path) == {}


async def test_a_sweep_that_was_begun_before_there_were_folders_is_read_and_gone_on_with(tmp_path):
    await sweep_into(tmp_path, config())
    with sqlite3.connect(tmp_path / "sweep.db") as db:
        db.execute("alter table samples drop column output_dir")
    db.close()
    with SweepReader(tmp_path) as reader:
        assert {stored.row.output_dir for stored in reader.samples()} == {None}
    await sweep_into(tmp_path, config(attempts=3), writes=True)
    assert len(outputs(tmp_path)) == 10


async def test_files_are_served_as_what_can_do_nothing(tmp_path):
    def nasty(source: Any, task: str, seed: int | None, trajectory_id: str) -> Any:
        return record(trajectory_id, 1.0)

    made = config(tasks={"numbers": {"environment": "none", "count": 1}}, models={"a": {}})
    await sweep_into(tmp_path, made, writes=True, run_one=nasty)
    folder = next(iter(outputs(tmp_path).values()))
    (folder / "a page.html").write_text("<script>alert(1)</script>")
    (folder / "bytes").write_bytes(b"\0\1")
    (folder / "out").symlink_to(tmp_path / "sweep.db")
    server = SweepServer(tmp_path, ServeSettings())
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        (sample, *_) = (await client.get("/samples/1")).json()
        place = f"/outputs/{sample['sample']}"
        names = [name for name, _ in (await client.get(place)).json()["files"]]
        assert sorted(names) == ["a page.html", "agent/log.txt", "bytes", "result.json"]
        page = await client.get(f"{place}/a%20page.html")
        assert page.headers["content-type"] == "text/plain; charset=utf-8"
        assert "sandbox" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        data = await client.get(f"{place}/bytes")
        assert data.headers["content-disposition"].startswith("attachment")
        for name in ("out", "..%2f..%2f..%2fsweep.db", "nothing", "agent"):
            assert (await client.get(f"{place}/{name}")).status_code == 404
        assert (await client.get("/outputs/999")).status_code == 404
