"""An environment's own state beside the trainer's checkpoints: `<checkpoint_dir>/env_checkpoints/<name>/step-<n>.json`."""

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
_UNSAFE = re.compile(r"[^\w.-]|^\.+")


class CheckpointError(AgentEnvError):
    """An environment's state cannot be kept or read. The message names the file and the cause."""


class Checkpoints:
    """The checkpoints of one environment. A file is whole or not there, whatever happens.

    `save` takes a snapshot at once and writes it in a thread; `flush` waits for that and raises what went wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: list[Future[None]] = []

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep `state`, which must be JSON. Raises `CheckpointError` for what JSON does not know."""
        target = self.folder / f"step-{step}.json"
        try:
            content = json.dumps(state, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{target}: the environment's state is no JSON: {error}"
            ) from error
        self._writing.append(self._thread.submit(_write, target, content))

    async def flush(self) -> None:
        """Wait until everything is on the disk. Raises `CheckpointError`."""
        writing, self._writing = self._writing, []
        for write in writing:
            await asyncio.wrap_future(write)

    def load(self, up_to: int) -> tuple[int, dict[str, Any]] | None:
        """The latest that is not after step `up_to`, with its step; None where there is none.

        One that is damaged is passed over for the one before it; raises `CheckpointError` when all are.
        """
        steps = sorted((step for step in self.steps() if step <= up_to), reverse=True)
        problem: CheckpointError | None = None
        for step in steps:
            try:
                return step, _read(self.folder / f"step-{step}.json")
            except CheckpointError as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return None

    def steps(self) -> list[int]:
        """The steps there are checkpoints of."""
        if not self.folder.is_dir():
            return []
        found = (_FILE.fullmatch(entry.name) for entry in self.folder.iterdir())
        return [int(match[1]) for match in found if match]

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
