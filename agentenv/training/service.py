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

from agentenv.api.client import TrainerClient, TrainerRegistration
from agentenv.errors import ApiUnreachableError, ConfigError
from agentenv.policy.transformers_policy import TransformersPolicy, load_model
from agentenv.training.checkpoints import CheckpointStore
from agentenv.training.generation import GenerationServer
from agentenv.training.learner import Learner
from agentenv.training.trainer import LoopSettings, StepReport, Trainer
from agentenv.training.wire_source import WireSource
from agentenv_tools.serving import ServeSettings, serving

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentenv.api.client import TrainerInfo
    from agentenv.training.settings import TrainerConfig

logger = logging.getLogger(__name__)

STEPS_FILE = "steps.jsonl"
CHECKPOINTS = "checkpoints"


async def train(config: TrainerConfig) -> None:
    """Train until `steps`, serving generation all the while.

    Raises `ConfigError` where the server makes other batches, `ApiError`, `NoBatchError`, `TrainingDataError`,
    `CheckpointError`, `PolicyError`, or `ToolConfigError` when the port cannot be had.
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
        token = config.server_token.get_secret_value() if config.server_token else None
        client = await stack.enter_async_context(
            TrainerClient(config.server_url, token=token, consumer=config.consumer)
        )
        trainer = _trainer(config, learner, policy, client)
        step = await trainer.restore()
        server = GenerationServer(
            policy, ServeSettings(port=config.port, stop_grace_s=1.0), version=policy.version
        )
        url = await stack.enter_async_context(serving(server))
        logger.info("generation on %s, from step %d", url, step)
        await trainer.join()
        await trainer.run()


async def _register(config: TrainerConfig, client: TrainerClient, step: int) -> int | None:
    joined = await client.register(_registration(config, step))
    _check_settings(config, await client.info())
    return joined.current_step


def _check_settings(config: TrainerConfig, in_force: TrainerInfo) -> None:
    """Raises `ConfigError` where an earlier trainer registered other batches: those are what would come."""
    if in_force.batch_size != config.grpo.batch_size:
        raise ConfigError(
            f"batch_size={config.grpo.batch_size}: the trajectory server makes batches of {in_force.batch_size} rows, "
            "as its first trainer wanted; use that, or give the server another database, or reset it (/reset_data)"
        )


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

    async def register() -> int | None:
        return await _register(config, client, trainer.step)

    trainer = Trainer(
        WireSource(client),
        learner,
        LoopSettings(
            steps=config.grpo.steps,
            checkpoint_every=config.grpo.checkpoint_every,
            final_rate=config.grpo.final_rate,
            warmup_steps=config.grpo.warmup_steps,
            max_wait_s=config.grpo.max_wait_s,
        ),
        publish=policy.update_weights,
        checkpoints=CheckpointStore(config.folder / CHECKPOINTS, model_path=Path(config.model)),
        retry_on=(ApiUnreachableError,),
        on_step=_StepsFile(config.folder / STEPS_FILE).append,
        register=register,
    )
    return trainer


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
