"""Settings of a trainer process."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads it

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from agentenv.training.learner import LearnerSettings
from agentenv.training.loss import Clip


class GrpoConfig(BaseModel):
    """What is learned, and how fast."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    steps: int = Field(default=80, ge=1)
    """Batches to learn from."""
    batch_size: int = Field(default=64, ge=1)
    """Rows in a batch: a multiple of the environment's group size."""
    learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    """Of AdamW, at the first step."""
    final_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of the learning rate that is left at the last step; it falls along a line."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises along a line to where it falls from."""
    passes: int = Field(default=1, ge=1)
    """Steps of the optimizer on each batch, all of it each time."""
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
            passes=self.passes,
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
    server_token: SecretStr | None = None
    """Its bearer token for trainers."""
    port: int = Field(default=9004, ge=0, le=65_535)
    """Where generation is served, on this machine alone."""
    max_token_length: int = Field(default=1024, ge=1)
    """The longest row the environments send."""
    consumer: str | None = "trainer"
    """Name under which batches are leased. None: they are taken without acknowledgement."""
    grpo: GrpoConfig = Field(default_factory=GrpoConfig)
    """The rest."""
