"""The demo's configuration file."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentenv.training.settings import GrpoConfig


class EvaluationConfig(BaseModel):
    """How the policy is measured before and after: on the same tasks, with the same seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    env: dict[str, Any] = Field(default_factory=dict)
    """Settings of the environment that differ from those of training, such as `split: held_out`."""
    tasks: int = Field(default=95, ge=2)
    """Tasks, one after the other from the first."""
    samples: int = Field(default=4, ge=1)
    """Trajectories for each task."""
    workers: int = Field(default=16, ge=1)
    """Tasks under way at once."""
    seed: int = 12_345
    """Of every trajectory, with its task and number."""
    target_gain: float | None = Field(default=None, ge=-1, le=1)
    """How much the success rate must rise for the demo to count as done. None: nothing is asked."""
    timeout_s: float = Field(default=600.0, gt=0)
    """For each of the two measurements."""


class DemoConfig(BaseModel):
    """A whole demo. `environment` and `env` are what `agentenv serve` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    environment: str
    """`package.module:Class`, or a registered short name."""
    env: dict[str, Any] = Field(default_factory=dict)
    """Settings of the environment in training."""
    training: GrpoConfig = Field(default_factory=GrpoConfig)
    """What is learned, and how fast."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """How it is measured."""
    max_staleness: int | None = Field(default=None, ge=0)
    """Groups whose oldest token is more steps old are dropped when a batch is made. None: none is."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    """How long each process may take until it answers."""
    train_timeout_s: float = Field(default=3600.0, gt=0)
    """How long training may take in all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        size = self.env.get("group_size")
        if isinstance(size, int) and size > 0 and self.training.batch_size % size:
            raise ValueError(
                f"training.batch_size={self.training.batch_size} is no multiple of env.group_size={size}: no batch "
                "could ever be made"
            )
        return self
