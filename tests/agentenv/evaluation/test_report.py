"""The report of a sweep: what its file holds, and what its server answers."""

import base64
import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentenv.errors import SweepError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.report.page import SWEEP_PAGE, write_sweep_report
from agentenv.evaluation.report.server import SweepServer
from agentenv.outcomes import Outcome
from agentenv_tools.serving.settings import ServeSettings
from tests.agentenv.evaluation.sweeps import by_seed, config, record, sweep_into

NASTY = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \u2028 & \ud800"


def blocks(page: Path) -> dict[str, Any]:
    """The data of a page, unpacked."""
    found: dict[str, Any] = {}
    pattern = r'<script type="([a-z/]+)" id="([a-z0-9-]+)">([^<]*)</script>'
    for kind, name, text in re.findall(pattern, page.read_text("utf-8")):
        packed = kind == "text/plain"
        found[name] = json.loads(gzip.decompress(base64.b64decode(text)) if packed else text)
    return found


async def test_a_report_holds_every_sample_with_its_trajectory(tmp_path):
    await sweep_into(tmp_path, config())
    found = blocks(write_sweep_report(tmp_path))
    sweep, index = found["sweep"], found["tasks"]
    assert [arm["label"] for arm in sweep["arms"]] == ["a", "b"]
    assert [arm["ended"] for arm in sweep["arms"]] == [10, 10]
    assert sweep["notes"] == []
    (pair,) = sweep["pairs"]
    assert pair["arms"] == [0, 1]
    assert pair["tasks"] == 5
    assert index["name"] == ["0", "1", "2", "3", "4"]
    with SweepReader(tmp_path) as reader:
        expected = {stored.row.trajectory_id: stored.row.reward for stored in reader.samples()}
    shown = {
        sample["trajectory"]["trajectory_id"]: sample["score"]
        for place, section in enumerate(index["section"])
        for sample in found[f"section-{section}"][str(place)]
    }
    assert shown == expected


async def test_nothing_a_model_wrote_ends_a_block_of_data(tmp_path):
    def nasty(source, task, seed, trajectory_id):
        lost = Outcome.VERIFIER_FAILED
        return record(trajectory_id, None, outcome=lost, text=NASTY, cause=NASTY)

    await sweep_into(tmp_path, config(name=NASTY.replace("\ud800", "")), run_one=nasty)
    page = write_sweep_report(tmp_path).read_text("utf-8")
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert blocks(tmp_path / "report.html")["sweep"]["arms"][0]["causes"][0][0].startswith(
        "</script>"
    )


async def test_the_policy_names_script_and_style_and_allows_no_request(tmp_path):
    await sweep_into(tmp_path, config())
    page = write_sweep_report(tmp_path).read_text("utf-8")
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    assert found[1].startswith(
        "default-src 'none'; base-uri 'none'; form-action 'none'; script-src 'sha256-"
    )
    assert "connect-src" not in found[1]
    assert "innerHTML" not in SWEEP_PAGE.script()
    assert "eval(" not in SWEEP_PAGE.script()


async def test_a_report_that_may_not_grow_keeps_scores_and_says_what_is_left_out(tmp_path):
    def long(source, task, seed, trajectory_id):
        found = by_seed(source, task, seed, trajectory_id)
        noise = random.Random(f"{seed} {trajectory_id}").randbytes(1_000).hex()
        return record(trajectory_id, found.reward, text=noise)

    made = config(tasks={"numbers": {"environment": "none", "count": 60}})
    await sweep_into(tmp_path, made, run_one=long)
    found = blocks(write_sweep_report(tmp_path, max_bytes=150_000))
    index = found["tasks"]
    samples = [
        sample
        for place, section in enumerate(index["section"])
        for sample in found[f"section-{section}"][str(place)]
    ]
    kept = [sample for sample in samples if sample["trajectory"] is not None]
    assert len(samples) == 240
    assert 0 < len(kept) < 120
    assert f"{len(kept) // 4} of 60 tasks" in found["sweep"]["notes"][0]


async def test_a_half_done_sweep_has_a_report(tmp_path):
    await sweep_into(tmp_path, config(), stop_after=4)
    found = blocks(write_sweep_report(tmp_path))
    assert found["sweep"]["arms"][0]["ended"] < found["sweep"]["arms"][0]["planned"]


@pytest.fixture
async def client(tmp_path):
    await sweep_into(tmp_path / "sweep", config())
    server = SweepServer(tmp_path / "sweep", ServeSettings())
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asked:
        yield asked


async def test_a_server_answers_page_index_and_samples(client):
    page = await client.get("/")
    assert page.status_code == 200
    assert "connect-src 'self'" in page.text
    assert '"served":true' in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    index = (await client.get("/tasks")).json()
    samples = (await client.get(f"/samples/{index['task'][2]}")).json()
    assert [sample["attempt"] for sample in samples] == [1, 2, 1, 2]
    assert samples[0]["trajectory"]["steps"][0]["tool_calls"][0]["name"] == "terminal"
    plain = await client.get("/tasks", headers={"accept-encoding": "identity"})
    assert plain.json() == index
    assert (await client.get("/samples/999")).json() == []


async def test_a_server_refuses_other_names_other_paths_and_changes(client):
    assert (await client.get("/tasks", headers={"host": "evil.example"})).status_code == 421
    assert (
        await client.get("/tasks", headers={"origin": "http://evil.example"})
    ).status_code == 403
    assert (await client.get("/samples/..%2f..")).status_code == 404
    assert (await client.post("/tasks")).status_code == 405


def test_a_server_needs_a_sweep(tmp_path):
    with pytest.raises(SweepError, match="holds no sweep"):
        SweepServer(tmp_path, ServeSettings())
