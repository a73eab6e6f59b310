"""Tasks for an agent with a shell: generated from an index, the same every time, checked by the state they leave.

Held-out tasks share no file name with training tasks: a name is a pair of words, and the pairs are
divided between the two splits.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentenv_environments.shell_tasks.drawing import Draw, Split, is_held_out
from agentenv_environments.shell_tasks.families import DONE, FAMILIES, SEEN, Plan, Workspace

__all__ = [
    "DONE",
    "FAMILIES",
    "SEEN",
    "Plan",
    "Split",
    "Task",
    "Workspace",
    "is_held_out",
    "make_task",
]


@dataclass(frozen=True, slots=True)
class Task:
    """One task. It is solved when the workspace is exactly `after` and, if `answer` is set, that was the answer."""

    id: str
    family: str
    instruction: str
    before: Workspace
    after: Workspace
    answer: str | None
    """What must be answered; None: anything."""
    solution: Plan
    """A way to solve it."""
    slips: tuple[Plan, ...]
    """Ways in which an untrained hand goes wrong. None of them solves it."""


def make_task(split: Split, index: int) -> Task:
    """The task with that index. Families take turns: `index % len(FAMILIES)` says which."""
    family = list(FAMILIES)[index % len(FAMILIES)]
    sketch = FAMILIES[family](Draw(split, index))
    return Task(
        id=f"{split}-{family}-{index}",
        family=family,
        instruction=sketch.instruction,
        before=sketch.before,
        after=sketch.after or sketch.before,
        answer=sketch.answer,
        solution=sketch.solution,
        slips=sketch.slips,
    )
