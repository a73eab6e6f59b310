"""Checkpoints: folders `step-000012` that are whole or not there, whenever the trainer is killed.

Each holds the model and its tokenizer as Transformers reads them, so that its path is a `model_name`, and beside them
`optimizer.pt` and `trainer.json`.
"""

from __future__ import annotations

import json
import os
import pickle  # only for the name of what torch raises: nothing is unpickled but plain tensors
import re
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils.logging import disable_progress_bar

from agentenv.errors import AgentEnvError

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.training.learner import Learner

_NAME = re.compile(r"step-(\d{6,})")
_PROGRESS = "trainer.json"
_OPTIMIZER = "optimizer.pt"
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab*", "merges*")


class CheckpointError(AgentEnvError, OSError):
    """A checkpoint cannot be written or read."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far training had come."""

    step: int
    """Batches learned from."""
    batch_id: int | None
    """The last of them, so that it is not learned from again if it was not acknowledged in time."""
    path: Path


class CheckpointStore:
    """The checkpoints of one run. One process writes; the last `keep` are kept."""

    def __init__(self, folder: Path, *, model_path: Path, keep: int = 2) -> None:
        self._folder = folder
        self._model_path = model_path
        self._keep = keep

    def latest(self) -> Checkpoint | None:
        """The newest one. Raises `CheckpointError` if it cannot be read."""
        paths = self._paths()
        if not paths:
            return None
        path = paths[-1]
        try:
            saved = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
            return Checkpoint(int(saved["step"]), saved["batch_id"], path)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; remove it to go on") from error

    def save(self, learner: Learner, *, step: int, batch_id: int | None) -> Checkpoint:
        """Write one, and remove the oldest. Raises `CheckpointError`."""
        target = self._folder / f"step-{step:06d}"
        draft = self._folder / f".{target.name}.{os.getpid()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self._write(draft, learner, {"step": step, "batch_id": batch_id})
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
            _sync(self._folder)
            for old in self._paths()[: -self._keep]:
                shutil.rmtree(old)
        except OSError as error:
            raise CheckpointError(f"{target} cannot be written: {error}") from error
        return Checkpoint(step, batch_id, target)

    def restore(self, checkpoint: Checkpoint, learner: Learner) -> None:
        """Put weights and optimizer back. Raises `CheckpointError`."""
        from safetensors.torch import load_model  # noqa: PLC0415 - only where there is something to restore

        try:
            load_model(learner.model, checkpoint.path / "model.safetensors")
            state = torch.load(checkpoint.path / _OPTIMIZER, weights_only=True)
            learner.optimizer.load_state_dict(state)
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{checkpoint.path} cannot be restored: {_brief(error)}"
            ) from error

    def _write(self, draft: Path, learner: Learner, progress: dict[str, Any]) -> None:
        draft.mkdir()
        disable_progress_bar()  # of saving a model, which would draw over the run's own display
        learner.model.save_pretrained(draft)
        for pattern in _TOKENIZER_FILES:
            for file in self._model_path.glob(pattern):
                shutil.copy2(file, draft)
        torch.save(learner.optimizer.state_dict(), draft / _OPTIMIZER)
        text = json.dumps(progress | {"settings": asdict(learner.settings)}, indent=2)
        (draft / _PROGRESS).write_text(text + "\n", encoding="utf-8")
        for file in draft.iterdir():
            _sync(file)
        _sync(draft)

    def _paths(self) -> list[Path]:
        """Those that are whole, oldest first."""
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _sweep(self) -> None:
        """Remove what a killed writer left."""
        for draft in self._folder.glob(".step-*"):
            shutil.rmtree(draft)


def _brief(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
