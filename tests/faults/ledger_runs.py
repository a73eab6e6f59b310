"""`agentenv process` over `LedgerEnv`, as a program of its own."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agentenv.run.directory import read_groups
from tests.faults.ledger_env import END_IDS, TOKENIZER, append_by_seed
from tests.faults.programs import Program, program
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agentenv.run.record import GroupRecord

GROUP_SIZE = 4
POLICY: dict[str, Any] = {
    "script": append_by_seed,
    "tokenizer": TOKENIZER,
    "end_ids": END_IDS,
    "latency_s": 0.1,
}
"""A fake engine for runs that go on until they are stopped: it leaves the machine some time for others."""


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
