"""The trajectories of a sweep in the interchange format, made of what its database holds when they are asked for.

A sample has one trajectory, that of its last try; what tries before it left, which infrastructure ended, is not kept.
Tokens are in it where the sweep was told to keep them (`keep_tokens`), exactly those of the rollout.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from agentenv.atif.models import Agent
from agentenv.atif.rollouts import from_rollout, rollout_images
from agentenv.atif.store import TrajectorySummary
from agentenv.errors import RunDirectoryError, SweepError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.rescoring import agent_result
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.run.record import TrajectoryRecord
from agentenv.tokens.base import Message
from agentenv_tools.parsing import parse_reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from agentenv.atif.models import Trajectory
    from agentenv.evaluation.reader import StoredSample
    from agentenv_tools.schema import ImagePart

_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)


class SweepTrajectories:
    """What `atif.store.Trajectories` is for other run directories. A context manager; blocking; for one thread.

    Raises `SweepError` when there is no sweep, `RunDirectoryError` for a trajectory that is not there.
    """

    def __init__(self, path: Path | str) -> None:
        self._reader = SweepReader(path)
        self._arms = self._reader.arms()
        self._tasks = {info.task: info for info in self._reader.tasks()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.__exit__()

    def count(self) -> int:
        """How many there are."""
        return self._reader.count()

    def summaries(self) -> Iterator[TrajectorySummary]:
        """Each of them, by task, model, settings and attempt. `steps` are replies of the policy."""
        for stored in self._reader.samples():
            row = stored.row
            yield TrajectorySummary(
                row.trajectory_id, row.outcome, row.stop_reason, row.reward, row.replies, row.ended_at
            )  # fmt: skip

    def find(self, name: str) -> str:
        """The id that `name` is or begins: a trajectory's, or a sample's. Raises unless it is exactly one."""
        found = self._reader.trajectory_ids(name, limit=3)
        if name in found or len(found) == 1:
            return name if name in found else found[0]
        what = (
            f"several trajectories begin with {name!r}" if found else f"no trajectory is {name!r}"
        )
        raise RunDirectoryError(
            f"{self._reader.path}: {what}; `agentenv trajectory list` names them"
        )

    def read(self, trajectory_id: str) -> Trajectory:
        """One trajectory, with its tokens where they were kept."""
        stored, record = self._record(trajectory_id)
        arm, info = self._arms[stored.row.arm], self._tasks[stored.row.task]
        from agentenv import __version__  # noqa: PLC0415 - an import at the top would be a circle

        extra = {"task_set": info.task_set, "task": info.name, "settings": arm.settings}
        agent = Agent(name="agentenv", version=__version__, model_name=arm.model, extra=extra)
        return from_rollout(rollout_record(record), agent=agent, instruction=info.preview)

    def images(self, trajectory_id: str) -> dict[str, ImagePart]:
        """Its images, by the paths that it names."""
        return rollout_images(rollout_record(self._record(trajectory_id)[1]))

    def _record(self, trajectory_id: str) -> tuple[StoredSample, TrajectoryRecord]:
        stored = self._reader.by_trajectory(trajectory_id)
        if stored is None:
            raise RunDirectoryError(f"{self._reader.path}: no trajectory is {trajectory_id!r}")
        try:
            return stored, TrajectoryRecord.from_json(self._reader.trajectory(stored.sample))
        except (ValueError, TypeError, KeyError) as error:
            raise SweepError(f"trajectory {trajectory_id!r} cannot be read: {error}") from error


def rollout_record(record: TrajectoryRecord) -> RolloutRecord:
    """What a rollout left, as far as it was written down: without recordings, which are casts beside it."""
    return RolloutRecord(
        trajectory_id=record.trajectory_id,
        outcome=Outcome(record.outcome),
        stop_reason=StopReason(record.stop_reason),
        reward=record.score,
        result=agent_result(record) if record.steps else None,
        cause=record.cause,
        score_metadata=record.score_metadata,
        duration_s=record.duration_s,
        tool_seconds=record.timings.get("tools", 0.0),
        unfinished=() if record.steps else tuple(_messages(record)),
    )


def _messages(record: TrajectoryRecord) -> Iterator[Message]:
    """The conversation of an agent that was cut off, its calls and their results apart again."""
    numbers = itertools.count(1)
    called: list[str] = []
    for message in record.messages:
        role, text = str(message["role"]), str(message["content"])
        if role == "assistant":
            found = parse_reply(text)
            calls = tuple(
                replace(call, uniq_id=f"call-{next(numbers)}") for call in found.tool_calls
            )
            called = [call.uniq_id for call in calls]
            yield Message("assistant", found.content, calls, reasoning=found.reasoning)
        elif text.startswith("<tool_response>"):
            yield from _results(_RESPONSE.findall(text), called)
        else:
            yield Message("system" if role == "system" else "user", text)


def _results(texts: Iterable[str], called: list[str]) -> Iterator[Message]:
    for text, call in itertools.zip_longest(texts, called):
        if text is not None:
            yield Message("tool", text, tool_call_id=call)
