"""Environments whose rollouts a page shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from agentenv.watch.board import Slots

if TYPE_CHECKING:
    from agentenv.env import AgentEnv
    from agentenv.observer import RolloutObserver
    from agentenv.watch.opening import Watch


class WatchedEnvironments:
    """Those that a run has at present. An environment that is dropped is forgotten."""

    def __init__(self) -> None:
        self._environments: WeakSet[AgentEnv[Any]] = WeakSet()

    def add(
        self, env: AgentEnv[Any], watch: Watch, observer: RolloutObserver | None = None
    ) -> None:
        """Have an environment's rollouts observed by a page, and paused with it. Before it is set up.

        `observer` is told of them; None: the page's board.
        """
        env.runtime.observers = (*env.runtime.observers, observer or watch.board)
        env.runtime.gate = watch.gate
        self._environments.add(env)

    def slots(self) -> Slots | None:
        """Of all their backends together; None while none has any."""
        each = [env.runtime.backend.stats() for env in self._environments]
        total = sum(stats.total_slots for stats in each)
        used, waiting = sum(s.acquired_slots for s in each), sum(s.waiting for s in each)
        return Slots(total, used, waiting) if total or waiting else None
