"""The benchmark runs and says what it measured; how fast anything is, is no test's business."""

import asyncio
import json
import math
import sys
from pathlib import Path

import pytest

from agentenv_backends.errors import SlotLostError
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from agentenv_backends.testing import FakeProvider, Faults, fake_pool
from tests.benchmarks.__main__ import SECTIONS, main
from tests.benchmarks.figures import Goal, Load, percentile
from tests.benchmarks.load import drive
from tests.benchmarks.peers import PEERS, PeerUnavailableError, swe_rex
from tests.benchmarks.serial_batches import SerialBatches
from tests.docker_engine import IMAGE, needs_engine
from tests.modal_service import why_no_emulated_modal

IN_CONTAINERS = ("containers", "docker")


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SECTIONS.keys() - {*IN_CONTAINERS, "modal"}))
def test_each_section_gives_figures(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    check_that_it_gives_figures(name, tmp_path, capsys)


@pytest.mark.docker
@pytest.mark.slow
@needs_engine
@pytest.mark.parametrize("name", IN_CONTAINERS)
def test_each_section_about_containers_gives_figures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    check_that_it_gives_figures(name, tmp_path, capsys)


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_emulated_modal()), reason=why_no_emulated_modal())
def test_the_section_about_modal_gives_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    check_that_it_gives_figures("modal", tmp_path, capsys)


def check_that_it_gives_figures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert main(["--quick", "--only", name, "--json", str(path)]) == 0
    (section,) = json.loads(path.read_text())["sections"]
    values = [value for row in section["rows"] for value in row["figures"].values()]
    assert values
    assert all(math.isfinite(value) for value in values)
    assert section["title"] in " ".join(capsys.readouterr().out.split())


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--only", "exec,speed"])
    assert "unknown: speed" in capsys.readouterr().err


def test_percentiles_are_values_that_were_measured():
    values = [float(n) for n in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (50.0, 99.0)
    assert percentile([3.0], 0.99) == 3.0
    assert math.isnan(percentile([], 0.5))


def test_the_median_of_loads_is_taken_figure_by_figure():
    loads = [Load(10.0, 0.3, 0.9, 1), Load(30.0, 0.1, 0.5, 2), Load(20.0, 0.2, 0.7, 3)]
    assert Load.median(loads) == Load(20.0, 0.2, 0.7, 6)


def test_a_goal_is_met_on_the_right_side_of_its_bound():
    assert Goal("of the floor", 0.8, 0.75, at_least=True).met
    assert not Goal("of the floor", 0.7, 0.75, at_least=True).met
    assert not Goal("ms added", 1.1, 1.0, at_least=False).met


async def test_calls_that_end_too_late_count_for_the_cost_and_not_for_the_rate():
    load = await drive(lambda number: asyncio.sleep(0.001 if number else 0.3), 2, 0.1)
    assert load.calls >= 2
    assert load.rate * 0.1 <= load.calls - 1 + 1e-9


async def test_calls_counted_to_the_end_are_all_counted():
    load = await drive(lambda number: asyncio.sleep(0.2), 3, 0.1, to_the_end=True)
    assert load.calls == 3
    assert load.rate <= 3 / 0.2


@pytest.mark.parametrize("python", ["", "/no/such/python", sys.executable])
async def test_a_peer_that_is_not_installed_says_so(python: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PEERS, python)
    with pytest.raises(PeerUnavailableError, match=f"{PEERS}|not installed"):
        async with swe_rex(IMAGE, 1):
            raise AssertionError("it is installed here")


async def test_serial_batches_answer_each_call_with_its_own_result():
    async with fake_pool(FakeProvider(), slots=3) as pool:
        rival = SerialBatches(pool, window_s=0.001)
        slots = [await pool.acquire(f"t{number}") for number in range(3)]
        results = await asyncio.gather(
            *(rival.execute(slot, ExecRequest(f"echo {n}")) for n, slot in enumerate(slots))
        )
        await rival.close()
    assert [r.stdout.text() for r in results if isinstance(r, ExecResult)] == ["0\n", "1\n", "2\n"]


async def test_a_lost_slot_fails_its_own_call_in_a_batch():
    async with fake_pool(FakeProvider(faults=Faults(slot_lost=1.0)), slots=1) as pool:
        rival = SerialBatches(pool, window_s=0.001)
        with pytest.raises(SlotLostError):
            await rival.execute(await pool.acquire("t"), ExecRequest("true"))
        await rival.close()
