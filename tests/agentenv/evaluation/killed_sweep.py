"""A sweep that is run in a process of its own, to be killed. Imported before that process is forked."""

import asyncio
import os
from pathlib import Path

from agentenv.rollout import RolloutRecord
from tests.agentenv.evaluation.sweeps import NumbersSource, by_seed, config, sweep_into

MADE = config(tasks={"numbers": {"environment": "none", "count": 40}}, attempts=3, concurrency=4)
SAMPLES = 40 * 2 * 3


def sweep_and_note(directory: Path, begun: Path) -> None:
    """Take what is left of the sweep, noting each sample that is begun before it is."""
    note = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def run(
        source: NumbersSource, task: str, seed: int | None, trajectory_id: str
    ) -> RolloutRecord:
        os.write(note, f"{trajectory_id}\n".encode())
        return by_seed(source, task, seed, trajectory_id)

    asyncio.run(sweep_into(directory, MADE, run_one=run, writes=True))
    os.close(note)
