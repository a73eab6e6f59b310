"""A live page of a run, and its controls: what rollouts do while they do it.

    async with watching() as watch:
        await rollout(..., harness=ToolLoop(..., gate=watch.gate), observers=(watch.board,))

`AgentRunner(..., watch=True)` and `--watch` open one. See `docs/watching.md`.
"""

from agentenv.watch.arms import ArmObserver
from agentenv.watch.board import Board, Slots
from agentenv.watch.environments import WatchedEnvironments
from agentenv.watch.opening import DEFAULT_PORT, Watch, watching

__all__ = [
    "DEFAULT_PORT",
    "ArmObserver",
    "Board",
    "Slots",
    "Watch",
    "WatchedEnvironments",
    "watching",
]
