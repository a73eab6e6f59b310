"""Who is registered: the trainer, and the environments that feed it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from agentenv.api.packing import Minimum

MIN_ENV_WEIGHT = 0.01
MAX_GROUP_SIZE = 1 << 20
MAX_WEIGHT = 1e9
_MAX_WHOLE = 1 << 53
Whole = Annotated[int, Field(ge=-_MAX_WHOLE, le=_MAX_WHOLE)]
"""A number that survives every reader of JSON."""


class TrainerRegistration(BaseModel):
    """What a trainer tells. All of it is required."""

    model_config = ConfigDict(frozen=True)

    wandb_group: str
    wandb_project: str
    batch_size: Whole
    """Rows of a batch."""
    max_token_len: Whole
    checkpoint_dir: str
    save_checkpoint_interval: Whole
    starting_step: Whole
    num_steps: Whole


class EnvRegistration(BaseModel):
    """What an environment tells."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    max_token_length: Whole
    desired_name: str
    weight: float = Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)
    group_size: int = Field(ge=1, le=MAX_GROUP_SIZE)
    min_batch_allocation: float | None = Field(default=None, ge=-1, le=1)
    """The fraction of each batch it is to have, at least."""
    instance: str | None = None
    """Ours: an environment that comes back with the same one gets its id and name back, whatever happened."""


@dataclass(slots=True)
class Environment:
    """A registered environment."""

    env_id: int
    name: str
    """`desired_name` and the number of those of that name before it."""
    desired_name: str
    max_token_length: int
    weight: float
    group_size: int
    min_batch_allocation: float | None = None
    instance: str | None = None
    connected: bool = True
    """Until it says goodbye."""
    expired: bool = False
    """It was silent for too long. It counts again as soon as it speaks."""

    @property
    def counts(self) -> bool:
        """Whether the trainer waits for it."""
        return self.connected and not self.expired


@dataclass(slots=True)
class Registry:
    """The trainer's settings and the environments. As after `/reset_data` until a trainer registers."""

    registered: bool = False
    known: bool = False
    """Whether a trainer registered at any time, be it before a reset."""
    started: bool = False
    """Whether the trainer has asked for a batch. Environments may register from then on."""
    paused_until: float = 0.0
    """Seconds since the epoch. Environments are to wait until then."""
    group: str | None = None
    project: str | None = None
    batch_size: int = -1
    max_token_len: int = -1
    checkpoint_dir: str = ""
    checkpoint_interval: int = -1
    num_steps: int = -1
    step: int = 0
    envs: list[Environment] = field(default_factory=list)

    def register(self, trainer: TrainerRegistration) -> bool:
        """Take a trainer's settings. Only the first since the start or a reset counts; returns whether it did."""
        if self.registered:
            return False
        self.registered = self.known = True
        self.started = False
        self.group, self.project = trainer.wandb_group, trainer.wandb_project
        self.batch_size, self.max_token_len = trainer.batch_size, trainer.max_token_len
        self.checkpoint_dir = trainer.checkpoint_dir
        self.checkpoint_interval = trainer.save_checkpoint_interval
        self.step, self.num_steps = trainer.starting_step, trainer.num_steps
        return True

    def reset(self) -> None:
        """Forget all but what the protocol keeps: `max_token_len`, the checkpoint's folder and interval."""
        self.registered = self.started = False
        self.paused_until = 0.0
        self.group = self.project = None
        self.batch_size = self.num_steps = -1
        self.step = 0
        self.envs = []

    def register_env(self, env: EnvRegistration) -> Environment:
        """Take an environment in. One that vanished gets its id back when its name comes again."""
        if (old := self._comes_back(env)) is not None:
            entry = replace(
                old,
                max_token_length=env.max_token_length,
                weight=env.weight,
                group_size=env.group_size,
                min_batch_allocation=env.min_batch_allocation,
                instance=env.instance,
                connected=True,
                expired=False,
            )
            self.envs[old.env_id] = entry
            return entry
        earlier = sum(other.desired_name == env.desired_name for other in self.envs)
        entry = Environment(
            env_id=len(self.envs),
            name=f"{env.desired_name}_{earlier}",
            **env.model_dump(),
        )
        self.envs.append(entry)
        return entry

    def _comes_back(self, env: EnvRegistration) -> Environment | None:
        for other in self.envs:
            if other.desired_name != env.desired_name:
                continue
            if env.instance is not None and env.instance == other.instance:
                return other
            if other.expired and other.connected and None in (env.instance, other.instance):
                return other
        return None

    def env(self, env_id: int | None) -> Environment | None:
        """The environment with an id, if there is one."""
        known = env_id is not None and 0 <= env_id < len(self.envs)
        return self.envs[env_id] if known and env_id is not None else None

    def minima(self) -> list[Minimum]:
        """What the environments that count are to have of each batch."""
        return [
            Minimum(env.env_id, env.min_batch_allocation)
            for env in self.envs
            if env.counts and env.min_batch_allocation is not None
        ]

    def weight_of(self, env: Environment) -> float:
        """Its share by weight and context length, 0.01 at least; 1 where no weights are given."""
        total = sum(e.max_token_length * max(0.0, e.weight) for e in self.envs if e.counts)
        if total <= 0:
            return 1.0
        return max(MIN_ENV_WEIGHT, env.max_token_length * env.weight / total)

    def settings(self) -> dict[str, Any]:
        """All but the environments, for the database."""
        return {key: value for key, value in asdict(self).items() if key != "envs"}
