"""Runs of `agentenv process` over `LedgerEnv`: to their end in this process, or as a program of its own."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agentenv.process import process
from agentenv.run.directory import RunDirectory, read_groups
from tests.faults.ledger_env import END_IDS, TOKENIZER, append_by_seed
from tests.faults.programs import Program, program
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from agentenv.env import AgentEnv
    from agentenv.run.progress import QuietProgress
    from agentenv.run.record import GroupRecord

GROUP_SIZE = 4
POLICY: dict[str, Any] = {
    "script": append_by_seed,
    "tokenizer": TOKENIZER,
    "end_ids": END_IDS,
    "latency_s": 0.1,
}
"""A fake engine for runs that go on until they are stopped: it leaves the machine some time for others."""


async def collected(
    env: AgentEnv[Any], path: Path, progress: QuietProgress | None = None
) -> list[GroupRecord]:
    """What `env` has written into a new run directory when all its steps are done, in order of their ids."""
    directory = await RunDirectory.open(path)
    try:
        await process(env, directory=directory, progress=progress, handle_signals=False)
    finally:
        await directory.close()
    return sorted(read_groups(path), key=lambda group: group.group_id)


def trained_on(groups: Iterable[GroupRecord]) -> dict[str, dict[str, Any]]:
    """What a trainer gets of each, by id: equal for runs that went the same way."""
    return {group.group_id: dict(group.group) for group in groups}


class LedgerRun:
    """A run under way, with all its files in one folder."""

    def __init__(self, running: Program, folder: Path) -> None:
        self.process = running.process
        self.footprint = running.footprint
        self.ended = running.ended
        self.directory = folder / "run"
        self._output = folder / "output.txt"

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def written(self) -> int:
        """Groups on disk."""
        path = self.directory / "groups.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def groups(self) -> list[GroupRecord]:
        """Those groups. Raises what reading a damaged file raises."""
        return list(read_groups(self.directory)) if self.directory.exists() else []

    def summary(self) -> dict[str, Any]:
        """Its totals, once it has ended."""
        totals: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return totals

    async def under_way(self, groups: int = 3) -> None:
        """Return when so many groups are written."""
        await eventually(
            lambda: self.process.returncode is not None or self.written() >= groups,
            f"{groups} groups are written",
            within_s=60,
        )
        assert self.process.returncode is None, self.output
        self.footprint.look()


@asynccontextmanager
async def ledger_run(
    folder: Path,
    engine_url: str,
    backend: dict[str, Any],
    *flags: str,
    total_steps: int = -1,
    environment: str = "tests.faults.ledger_env:LedgerEnv",
) -> AsyncIterator[LedgerRun]:
    """One that has just been started, with a policy served at `engine_url`; endless unless `total_steps` is given."""
    folder.mkdir(exist_ok=True)
    TOKENIZER.save_pretrained(folder / "tokenizer")
    config = {
        "environment": environment,
        "env": {
            "tokenizer_name": str(folder / "tokenizer"),
            "renderer": "qwen3",
            "group_size": GROUP_SIZE,
            "total_steps": total_steps,
            "max_num_workers": 4,
            "max_token_length": 8192,
            "seed": 1,
            "backend": backend,
        },
        "openai": [{"server_type": "vllm", "base_url": engine_url}],
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    files = (str(folder / "config.yaml"), "--run-dir", str(folder / "run"))
    arguments = ("-m", "agentenv", "process", *files, *flags)
    async with program(*arguments, output=folder / "output.txt") as running:
        yield LedgerRun(running, folder)
