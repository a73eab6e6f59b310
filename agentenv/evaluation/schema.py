"""The tables of a sweep's database, and one row of its samples.

Numbers and names of a sample stand in `samples`, which is small, and read whole for a summary; what its trajectory was
is in `trajectories`, one compressed document each, read one at a time.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, fields
from typing import Any

FORMAT = "1"
"""Grows when a reader of the older form would misread the newer one."""
DATABASE = "sweep.db"

TABLES = """
create table meta (name text primary key, value text not null) without rowid;
create table arms (
  arm integer primary key, task_set text not null, model text not null, settings text not null,
  unique (task_set, model, settings)
);
create table tasks (
  task integer primary key, task_set text not null, place integer not null, name text not null, preview text not null,
  unique (task_set, name), unique (task_set, place)
);
create table samples (
  sample integer primary key,
  arm integer not null references arms, task integer not null references tasks,
  seed integer not null, attempt integer not null,
  outcome text not null, stop_reason text not null, reward real, first_reward real, rewards text, cause text,
  input_tokens integer not null, cached_tokens integer not null, output_tokens integer not null, cost_usd real,
  replies integer not null, tool_calls integer not null, tool_errors integer not null,
  duration_s real not null, generation_s real not null, tools_s real not null, tries integer not null,
  trajectory_id text not null, ended_at real not null, output_dir text,
  unique (arm, task, seed, attempt)
);
create index samples_by_task on samples (task, arm);
create index samples_by_trajectory on samples (trajectory_id);
create table trajectories (sample integer primary key references samples on delete cascade, body blob not null);
create table casts (
  sample integer not null references samples on delete cascade, session text not null, body blob not null,
  primary key (sample, session)
) without rowid;
"""

NO_SEED = -1
"""How a sample without a seed is stored."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One ended sample: the columns of `samples` from `arm` on."""

    arm: int
    task: int
    seed: int
    """`NO_SEED` where it had none."""
    attempt: int
    outcome: str
    stop_reason: str
    reward: float | None = None
    """None where no reward exists."""
    first_reward: float | None = None
    """What the reward was before it was scored again; None where it never was."""
    rewards: str | None = None
    """Further rewards by name, as JSON."""
    cause: str | None = None
    input_tokens: int = 0
    """Of all tries together, as `cached_tokens`, `output_tokens`, `cost_usd` and `replies`."""
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    """None: unknown."""
    replies: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    duration_s: float = 0.0
    """Of the last try, as `generation_s` and `tools_s`."""
    generation_s: float = 0.0
    tools_s: float = 0.0
    tries: int = 1
    trajectory_id: str = ""
    ended_at: float = 0.0
    """Seconds since the epoch."""
    output_dir: str | None = None
    """The folder with what else it left, from the sweep's directory; None: nothing was kept."""

    def values(self) -> tuple[Any, ...]:
        """In the order of `COLUMNS`."""
        return astuple(self)


ADDED_COLUMNS = {"output_dir": "text"}
"""Columns of `samples` that sweeps which were begun before lack, with their types."""
COLUMNS = tuple(spec.name for spec in fields(SampleRow))
INSERT = (
    f"insert or replace into samples ({', '.join(COLUMNS)}) "  # noqa: S608 - names of this module
    f"values ({', '.join('?' * len(COLUMNS))})"
)


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A task as a sweep knows it."""

    name: str
    preview: str
    """Its instruction's first characters, for people."""


@dataclass(frozen=True, slots=True)
class EndedSample:
    """What is written of a sample: its row, its trajectory as JSON, its terminals as asciinema casts."""

    row: SampleRow
    trajectory: bytes
    casts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rescored:
    """A sample whose verifier was asked again."""

    sample: int
    reward: float | None
    outcome: str
    cause: str | None
    rewards: str | None
    """Further rewards by name, as JSON."""
    trajectory: bytes
    """As JSON, with the new score in it."""
