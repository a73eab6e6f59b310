"""How a task is run, beside what the task itself says. Data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_S = 86_400.0
"""Stands for "no limit": nothing here waits for ever."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything has a default. Times are in seconds."""

    verify: bool = True
    """False: no tests run, and there is no reward."""
    agent_timeout_s: float | None = None
    """In place of the task's."""
    verifier_timeout_s: float | None = None
    max_agent_timeout_s: float | None = None
    """The task's, or the one in its place, is cut to this."""
    max_verifier_timeout_s: float | None = None
    timeout_multiplier: float = 1.0
    """Of both, last."""
    extra_instructions: tuple[str, ...] = ()
    """Appended to what the agent is told."""
    artifacts: tuple[str, ...] = ()
    """Collected beside the task's."""
    accept_host_image: bool = False
    """Let the local backend run a task that wants an image in the programs of this machine instead. Tasks can say so
    themselves: `[metadata.agentenv] host_image = true`."""
    backend: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the backend's config that win over what the task makes of it, such as `docker_host` or `pull`."""
    environ: Mapping[str, str] | None = None
    """What `${NAME}` in task.toml is looked up in; None: this process's environment."""
    seed: int | None = None
    """Seeds the policy's replies."""
    trajectory_id: str | None = None
    """The rollout's name, which no other of the same places has; None: one is made."""
    keep_workspace_bytes: int = 0
    """Keep the workspace as the agent left it, packed in at most so many bytes, to be judged again (`workspaces`).
    Tasks with steps keep none."""

    def effective_agent_timeout_s(self, of_the_task: float | None) -> float:
        """The agent's time for a step, `LONGEST_S` where nothing limits it."""
        return self._effective(of_the_task, self.agent_timeout_s, self.max_agent_timeout_s)

    def effective_verifier_timeout_s(self, of_the_task: float) -> float:
        """The time of a test script."""
        return self._effective(of_the_task, self.verifier_timeout_s, self.max_verifier_timeout_s)

    def _effective(
        self, of_the_task: float | None, instead: float | None, at_most: float | None
    ) -> float:
        base = of_the_task if instead is None else instead
        limits = [limit for limit in (base, at_most) if limit is not None]
        return min(min(limits) * self.timeout_multiplier, LONGEST_S) if limits else LONGEST_S
