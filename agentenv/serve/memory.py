"""What of an environment outlives its process: who it is to the server, and its own state beside the trainer's."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentenv.errors import RunDirectoryError
from agentenv.run.directory import replace_file
from agentenv.serve.checkpoint import Checkpoints, checkpoint_folder, latest_namesake
from agentenv.stopping import failing_when_cancelled_inside

if TYPE_CHECKING:
    from agentenv.api.client import EnvRegistered
    from agentenv.collector import Collector
    from agentenv.env import AgentEnv

logger = logging.getLogger(__name__)

IDENTITY_FILE = "serve.json"
CURRICULUM = "curriculum"
"""The curriculum's state stands under this name beside the environment's own."""

ITEMS = "items"
"""Items that the dataset's position has passed, with no group of them, where JSON holds them as they are."""
_MAX_ITEMS_BYTES = 4_000_000


class Memory:
    """One environment's. `instance` is the same for every process that serves in one run directory."""

    def __init__(self, run_dir: Path, env: AgentEnv[Any], held: dict[str, Any]) -> None:
        self.instance: str = held.get("instance") or uuid4().hex
        self.saved = self.failed = 0
        self._run_dir = run_dir
        self._env = env
        self._name: str | None = held.get("name")
        self._server_id: str | None = held.get("server_id")
        self._checkpoints: Checkpoints | None = None
        self._earlier: Path | None = None
        self._collector: Collector | None = None

    @classmethod
    async def open(cls, run_dir: Path, env: AgentEnv[Any]) -> Memory:
        """What an earlier process left in `run_dir`, or a new identity. Raises `RunDirectoryError`."""
        return cls(run_dir, env, await asyncio.to_thread(_read, run_dir / IDENTITY_FILE))

    async def joined(self, joined: EnvRegistered) -> None:
        """The server gave a name. The first one it ever gave is where the checkpoints are.

        Raises `RunDirectoryError`.
        """
        base = Path(joined.checkpoint_dir) if joined.checkpoint_dir else self._run_dir
        if self._name is None:
            self._earlier = await asyncio.to_thread(latest_namesake, base, self._env.display_name)
            self._name = joined.wandb_name
            await self._write()
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(checkpoint_folder(base, self._name))
            self._env.runtime.checkpoints = self._checkpoints

    def served_another(self, server_id: str | None) -> bool:
        """Whether an earlier process served another server than this one, as far as the two tell."""
        return None not in (server_id, self._server_id) and server_id != self._server_id

    async def heard(self, server_id: str | None) -> None:
        """The server said who it is. Raises `RunDirectoryError`."""
        if server_id != self._server_id:
            self._server_id = server_id
            await self._write()

    def restore(self, collector: Collector, step: int) -> None:
        """Have the environment and its curriculum go on from the latest checkpoint, where training does.

        Raises what the environment's `load_checkpoint` raises: to go on from the wrong place would go unnoticed.
        """
        assert self._checkpoints is not None, "after joined()"
        self._collector = collector
        self._env.curr_step = step
        if step <= 0:
            return
        if not self._checkpoints.steps() and self._earlier is not None:
            logger.info(
                "going on from the checkpoints of an environment of the same name, %s",
                self._earlier,
            )
            self._checkpoints.found_in(self._earlier)
        self._env.load_checkpoint()
        if self._checkpoints.load(step) is None:
            logger.info("no checkpoint up to step %d in %s", step, self._checkpoints.folder)
            return
        beside = self._checkpoints.beside
        if CURRICULUM in beside:
            collector.items.curriculum.restore(beside[CURRICULUM])
        collector.take_up(beside.get(ITEMS, []))

    async def save(self, step: int) -> None:
        """Keep a checkpoint. What fails is logged and counted: training goes on without it."""
        checkpoints, collector = self._checkpoints, self._collector
        if checkpoints is None or collector is None:
            return
        curriculum = collector.items.curriculum.state()
        remembered = {CURRICULUM: curriculum} if curriculum else {}
        items = _if_plain(collector.unfinished)
        checkpoints.beside = {**remembered, ITEMS: items} if items else remembered
        try:
            with failing_when_cancelled_inside("save_checkpoint"):
                self._env.save_checkpoint(step)
            if remembered and not checkpoints.is_saving(step):
                checkpoints.beside = (
                    remembered  # an environment without a state begins its dataset anew
                )
                checkpoints.save(step, {})
            self.saved += await checkpoints.flush()
        except Exception:  # the environment's own code may raise anything
            self.failed += 1
            logger.exception("the environment's checkpoint of step %d is not kept", step)

    async def close(self) -> None:
        """End what is open. Idempotent."""
        if self._checkpoints is not None:
            self._checkpoints.close()

    async def _write(self) -> None:
        content = {"instance": self.instance, "name": self._name, "server_id": self._server_id}
        file = self._run_dir / IDENTITY_FILE
        try:
            await asyncio.to_thread(replace_file, file, json.dumps(content).encode())
        except OSError as error:
            raise RunDirectoryError(f"{file} cannot be written: {error.strerror}") from error


def _if_plain(items: list[Any]) -> list[Any]:
    """The items if JSON gives them back as they are, and they are not too many; else none."""
    try:
        text = json.dumps(items)
        same = len(text) <= _MAX_ITEMS_BYTES and json.loads(text) == items
    except (TypeError, ValueError, RecursionError):
        return []
    return items if same else []


def _read(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{file} cannot be read ({error}): remove it to serve as a new environment"
        ) from error
    return held if isinstance(held, dict) else {}
