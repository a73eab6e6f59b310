"""An environment's own state beside the trainer's checkpoints.

A file is `<checkpoint_dir>/env_checkpoints/<name>/step-<n>.json`, as with Atropos, and holds one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from agentenv.errors import AgentEnvError
from agentenv.run.directory import replace_file

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

_FILE = re.compile(r"step-(\d{1,18})\.json")
_BESIDE = "agentenv"
"""The key under which `beside` stands in a file."""
_UNSAFE = re.compile(r"[^\w.-]|^\.+")


class CheckpointError(AgentEnvError):
    """An environment's state cannot be kept or read. The message names the file and the cause."""


class Checkpoints:
    """The checkpoints of one environment. A file is whole or not there, whatever happens.

    `save` takes a snapshot at once and writes it in a thread; `flush` waits for that and raises what went wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.beside: dict[str, Any] = {}
        """What is kept in each file beside the state; after `load`, what was there."""
        self._read_from = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: dict[int, Future[None]] = {}

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep `state`, which must be JSON. Raises `CheckpointError` for what JSON does not know."""
        target = self.folder / f"step-{step}.json"
        try:
            content = json.dumps({**state, **self._beside()}, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{target}: the environment's state is no JSON: {error}"
            ) from error
        self._writing[step] = self._thread.submit(_write, target, content)

    def is_saving(self, step: int) -> bool:
        """Whether `save` was called for this step since the last `flush`."""
        return step in self._writing

    async def flush(self) -> int:
        """Wait until everything is on the disk; how many files that is. Raises `CheckpointError`."""
        writing, self._writing = self._writing, {}
        for write in writing.values():
            await asyncio.wrap_future(write)
        if writing:
            self._read_from = self.folder
        return len(writing)

    def found_in(self, folder: Path) -> None:
        """Read from another folder, until something was saved in ours."""
        self._read_from = folder

    def load(self, up_to: int) -> tuple[int, dict[str, Any]] | None:
        """The latest that is not after step `up_to`, with its step; None where there is none.

        One that is damaged is passed over for the one before it; raises `CheckpointError` when all are.
        """
        steps = sorted((step for step in self.steps() if step <= up_to), reverse=True)
        problem: CheckpointError | None = None
        for step in steps:
            try:
                state = _read(self._read_from / f"step-{step}.json")
            except CheckpointError as error:
                problem = problem or error
            else:
                self.beside = state.pop(_BESIDE, None) or {}
                return step, state
        if problem is not None:
            raise problem
        return None

    def steps(self) -> list[int]:
        """The steps there are checkpoints of."""
        if not self._read_from.is_dir():
            return []
        found = (_FILE.fullmatch(entry.name) for entry in self._read_from.iterdir())
        return [int(match[1]) for match in found if match]

    def _beside(self) -> dict[str, Any]:
        return {_BESIDE: self.beside} if self.beside else {}

    def close(self) -> None:
        """End the thread, when it has written what it was given."""
        self._thread.shutdown(wait=False)


def checkpoint_folder(checkpoint_dir: Path, name: str) -> Path:
    """Where the checkpoints of an environment of that name belong."""
    return checkpoint_dir / "env_checkpoints" / (_UNSAFE.sub("-", name) or "environment")


def latest_namesake(checkpoint_dir: Path, desired_name: str) -> Path | None:
    """The folder of an environment that asked for this name before, with the latest checkpoint; None: there is none.

    A server tells environments of one name apart by a number it appends, which is another one after a restart.
    """
    wanted = checkpoint_folder(checkpoint_dir, desired_name)
    siblings = [
        folder
        for folder in wanted.parent.glob("*")
        if re.fullmatch(re.escape(wanted.name) + r"(_\d+)?", folder.name)
    ]
    latest = {folder: max(Checkpoints(folder).steps(), default=-1) for folder in siblings}
    found = max(siblings, key=lambda folder: latest[folder], default=None)
    return found if found is not None and latest[found] >= 0 else None


def _write(target: Path, content: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror}") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds no object")
    return state
