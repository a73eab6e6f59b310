"""The trainer as a process of its own: it speaks the wire protocol to the trajectory server, and serves generation."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from agentenv.api.client import TrainerClient, TrainerRegistration
from agentenv.errors import ApiUnreachableError
from agentenv.policy.transformers_policy import TransformersPolicy, load_model
from agentenv.training.checkpoints import CheckpointStore
from agentenv.training.generation import GenerationServer
from agentenv.training.learner import Learner, LearnerSettings
from agentenv.training.loss import Clip
from agentenv.training.trainer import LoopSettings, StepReport, Trainer
from agentenv.training.wire_source import WireSource
from agentenv_tools.serving import ServeSettings, serving

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

STEPS_FILE = "steps.jsonl"
CHECKPOINTS = "checkpoints"


class GrpoConfig(BaseModel):
    """What is learned, and how fast."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    steps: int = Field(default=120, ge=1)
    """Batches to learn from."""
    batch_size: int = Field(default=64, ge=1)
    """Rows in a batch: a multiple of the environment's group size."""
    learning_rate: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    """Of AdamW."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The importance ratio is clipped to 1 - clip_low ..."""
    clip_high: float = Field(default=0.2, gt=0)
    """... and 1 + clip_high."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this."""
    micro_batch_tokens: int = Field(default=4_096, ge=1)
    """Tokens of one forward pass, padding included. On a CPU small passes are the fastest."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Steps between two checkpoints. 1: nothing is learned from twice or lost, whenever the trainer is killed."""
    max_wait_s: float = Field(default=600.0, gt=0)
    """How long one batch is waited for."""
    max_generation_rows: int = Field(default=64, ge=1)
    """Completions in one forward pass of generation."""
    torch_threads: int = Field(default=1, ge=1)
    """Threads of one operation, of generation and of learning each."""

    def learner_settings(self) -> LearnerSettings:
        """The part about weights."""
        return LearnerSettings(
            learning_rate=self.learning_rate,
            clip=Clip(self.clip_low, self.clip_high),
            max_grad_norm=self.max_grad_norm,
            micro_batch_tokens=self.micro_batch_tokens,
        )


class TrainerConfig(BaseModel):
    """One trainer process."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str
    """Folder of the model to begin with."""
    folder: Path
    """Where checkpoints and `steps.jsonl` go. If it holds a checkpoint, training goes on from there."""
    server_url: str = "http://127.0.0.1:8000"
    """The trajectory server."""
    port: int = Field(default=9004, ge=0, le=65_535)
    """Where generation is served, on this machine alone."""
    max_token_length: int = Field(default=1024, ge=1)
    """The longest row the environments send."""
    consumer: str | None = "trainer"
    """Name under which batches are leased. None: they are taken without acknowledgement."""
    grpo: GrpoConfig = Field(default_factory=GrpoConfig)
    """The rest."""


async def train(config: TrainerConfig) -> None:
    """Train until `steps`, serving generation all the while.

    Raises `ApiError`, `NoBatchError`, `TrainingDataError`, `CheckpointError`, `PolicyError`, or `ToolConfigError` when
    the port cannot be had.
    """
    torch.set_num_threads(config.grpo.torch_threads)
    learner = Learner(await asyncio.to_thread(_load, config.model), config.grpo.learner_settings())
    async with AsyncExitStack() as stack:
        policy = TransformersPolicy(
            lambda: _load(config.model),
            max_batch_size=config.grpo.max_generation_rows,
            torch_threads=config.grpo.torch_threads,
            policy_version="0",
        )
        await policy.start()
        stack.push_async_callback(policy.close)
        client = await stack.enter_async_context(
            TrainerClient(config.server_url, consumer=config.consumer)
        )
        trainer = _trainer(config, learner, policy, client)
        step = await trainer.restore()
        server = GenerationServer(
            policy, ServeSettings(port=config.port, stop_grace_s=1.0), version=policy.version
        )
        url = await stack.enter_async_context(serving(server))
        logger.info("generation on %s, from step %d", url, step)
        await trainer.persistently(lambda: client.register(_registration(config, step)))
        await trainer.run()


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The lines of a `steps.jsonl`, in order of steps. Of a step that was made twice, by a trainer that was killed
    before its checkpoint, the last line counts; a line that is still being written is left out.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = {line["step"]: line for line in _whole(lines)}
    return [found[step] for step in sorted(found)]


def _whole(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for text in lines:
        try:
            yield json.loads(text)
        except ValueError:
            continue  # cut by a kill, or not yet whole


def _load(name: str) -> Any:
    return load_model(name, torch.float32, "cpu")


def _trainer(
    config: TrainerConfig, learner: Learner, policy: TransformersPolicy, client: TrainerClient
) -> Trainer:
    config.folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        WireSource(client),
        learner,
        LoopSettings(
            steps=config.grpo.steps,
            checkpoint_every=config.grpo.checkpoint_every,
            max_wait_s=config.grpo.max_wait_s,
        ),
        publish=policy.update_weights,
        checkpoints=CheckpointStore(config.folder / CHECKPOINTS, model_path=Path(config.model)),
        retry_on=(ApiUnreachableError,),
        on_step=_StepsFile(config.folder / STEPS_FILE).append,
    )


def _registration(config: TrainerConfig, step: int) -> TrainerRegistration:
    return TrainerRegistration(
        wandb_group="train-demo",
        wandb_project="agentenv",
        batch_size=config.grpo.batch_size,
        max_token_len=config.max_token_length
        + 1,  # environments drop rows that are as long as this
        checkpoint_dir=str(config.folder),
        save_checkpoint_interval=config.grpo.checkpoint_every,
        starting_step=step,
        num_steps=config.grpo.steps,
    )


class _StepsFile:
    """A line for each step, with the time it ended."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, report: StepReport) -> None:
        line = json.dumps({"time": time.time(), **asdict(report)})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        logger.info(
            "step %d: reward %.3f, %d rows, waited %.1f s, learned %.1f s",
            report.step,
            report.mean_score,
            report.stats.rows,
            report.wait_s,
            report.stats.seconds,
        )
