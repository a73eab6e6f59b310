"""An evaluation's outputs as users of Atropos know them: `metrics.json`, `samples.jsonl`, `evaluate_config.yaml`.

Secrets are masked, in settings and metrics alike.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from agentenv.errors import RunDirectoryError
from agentenv.run.directory import replace_file
from agentenv.run.jsonl import encode_line, json_plain
from agentenv.run.masking import mask_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.env import AgentEnv

METRICS_FILE, SAMPLES_FILE, CONFIG_FILE = "metrics.json", "samples.jsonl", "evaluate_config.yaml"


@dataclass(frozen=True, slots=True)
class EvaluationLog:
    """What is written of one evaluation."""

    metrics: Mapping[str, Any]
    task_name: str
    model_name: str
    seconds: float | None = None
    generation_parameters: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()


def write_evaluation(directory: Path | str, log: EvaluationLog) -> None:
    """Write both files, the samples where there are some; those of an earlier evaluation are replaced. Blocking.

    Raises `RunDirectoryError` when they cannot be written.
    """
    folder = Path(directory)
    metrics = dict(log.metrics)
    content = {
        "config_general": {
            "model_name": log.model_name,
            "total_evaluation_time_seconds": "" if log.seconds is None else str(log.seconds),
            "generation_parameters": dict(log.generation_parameters),
        },
        "results": {f"atropos|{log.task_name}|0": metrics, "all": metrics},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / METRICS_FILE, encode_line(mask_secrets(content)))
        if log.samples:
            lines = b"".join(encode_line(dict(sample)) for sample in log.samples)
            replace_file(folder / SAMPLES_FILE, lines)
    except OSError as error:
        raise RunDirectoryError(f"the evaluation cannot be written to {folder}: {error}") from error


async def keep_evaluation(env: AgentEnv[Any], metrics: dict[str, Any], started: float) -> None:
    """What `evaluate` on the command line leaves in `data_dir_to_save_evals`, if that is set: the settings, and the
    metrics where the environment did not write them itself. Raises `RunDirectoryError`.
    """
    directory = env.config.data_dir_to_save_evals
    if directory is None:
        return
    if metrics and not env.evaluation_logged:
        await env.evaluate_log(metrics, start_time=started, end_time=time.time(), verbose=False)
    await asyncio.to_thread(_write_config, Path(directory), env)


def _write_config(folder: Path, env: AgentEnv[Any]) -> None:
    given = mask_secrets({"env": env.config, "openai": env.server_configs})
    text = yaml.safe_dump(json_plain(given), sort_keys=False, allow_unicode=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / CONFIG_FILE, text.encode("utf-8", "replace"))
    except OSError as error:
        raise RunDirectoryError(f"the evaluation cannot be written to {folder}: {error}") from error
