"""A sweep whose process is killed, at any moment, and gone on with."""

import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.agentenv.evaluation.killed_sweep import MADE, SAMPLES, sweep_and_note
from tests.agentenv.evaluation.sweeps import outputs, results, sweep_into

KILLS = 200


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes in milliseconds: forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.agentenv.evaluation.killed_sweep"])
    return context


def _run_and_kill(processes: Any, directory: Path, begun: Path, after_s: float) -> bool:
    """Whether the sweep was killed; False: it had ended before."""
    process = processes.Process(target=sweep_and_note, args=(directory, begun))
    process.start()
    process.join(after_s)
    process.kill()
    process.join(60)
    code: int | None = process.exitcode
    process.close()
    assert code in (0, -signal.SIGKILL), code
    return code != 0


@pytest.mark.slow
async def test_killed_at_two_hundred_moments_a_sweep_gives_what_it_gives_undisturbed(
    tmp_path, processes
):
    """Each sample once with its own whole folder, none lost, and at most those under way begun again."""
    await sweep_into(tmp_path / "whole", MADE)
    whole = results(tmp_path / "whole")
    assert len(whole) == SAMPLES
    dice = random.Random(0)
    kills = number = 0
    _run_and_kill(processes, tmp_path / "first", tmp_path / "first.log", 60)  # starts the server
    started = time.monotonic()
    _run_and_kill(processes, tmp_path / "warm", tmp_path / "warm.log", 60)
    full_s = time.monotonic() - started
    while kills < KILLS:
        directory, begun = tmp_path / f"sweep-{number}", tmp_path / f"begun-{number}.log"
        number, killed_here = number + 1, 0
        while _run_and_kill(processes, directory, begun, dice.uniform(0, full_s / 2)):
            killed_here += 1
        kills += killed_here
        assert results(directory) == whole
        kept = outputs(directory)
        assert len(kept) == SAMPLES
        assert all((folder / "agent/log.txt").read_text() == name for name, folder in kept.items())
        times = begun.read_text().split()
        assert len(set(times)) == SAMPLES
        assert len(times) <= SAMPLES + killed_here * MADE.concurrency
