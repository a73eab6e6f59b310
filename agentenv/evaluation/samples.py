"""From what a rollout left to what a sweep keeps of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv.evaluation.schema import NO_SEED, EndedSample, SampleRow
from agentenv.records import sample_record
from agentenv.run.casts import encode_cast
from agentenv.run.jsonl import encode_json, encode_line, json_plain
from agentenv.types import Usage

if TYPE_CHECKING:
    from agentenv.evaluation.sources import SampleResult
    from agentenv.evaluation.spec import SampleKey
    from agentenv.rollout import RolloutRecord


@dataclass(slots=True)
class SampleSpent:
    """What the tries of a sample took together."""

    tries: int = 0
    replies: int = 0
    usage: Usage = field(default_factory=Usage)
    unknown_cost: bool = False
    """Some try had replies whose cost nobody told."""

    def add(self, result: SampleResult) -> None:
        """Count one try."""
        self.tries += 1
        self.replies += _replies(result.record)
        self.usage = self.usage + result.usage
        self.unknown_cost |= result.usage.cost_usd is None and _replies(result.record) > 0

    @property
    def cost_usd(self) -> float | None:
        """None: unknown, or known of a part alone."""
        return None if self.unknown_cost else self.usage.cost_usd or 0.0


def ended_sample(
    key: SampleKey,
    place: tuple[int, int],
    result: SampleResult,
    spent: SampleSpent,
    *,
    keep_tokens: bool,
    output_dir: str | None = None,
) -> EndedSample:
    """What is written of a sample whose last try gave `result`. `place` is the numbers of its arm and its task."""
    record, agent = result.record, result.record.result
    steps = agent.steps if agent is not None else ()
    calls = [call for step in steps for call in step.tool_results]
    row = SampleRow(
        arm=place[0],
        task=place[1],
        seed=NO_SEED if key.seed is None else key.seed,
        attempt=key.attempt,
        outcome=record.outcome.value,
        stop_reason=record.stop_reason.value,
        reward=record.reward,
        rewards=named_rewards(result.rewards),
        cause=record.cause,
        input_tokens=spent.usage.prompt_tokens,
        cached_tokens=spent.usage.cached_tokens,
        output_tokens=spent.usage.completion_tokens,
        cost_usd=spent.cost_usd,
        replies=spent.replies,
        tool_calls=agent.total_tool_calls if agent is not None else 0,
        tool_errors=sum(not call.success for call in calls),
        duration_s=record.duration_s,
        generation_s=sum(step.generation_s for step in steps),
        tools_s=record.tool_seconds,
        tries=spent.tries,
        trajectory_id=record.trajectory_id,
        ended_at=time.time(),
        output_dir=output_dir,
    )
    encode = (
        encode_line if keep_tokens else encode_json
    )  # long lists of numbers must not hold up others
    trajectory = encode(sample_record(record, spent.tries, keep_tokens=keep_tokens).to_json())
    casts = {recording.session: encode_cast(recording) for recording in record.recordings}
    return EndedSample(row, trajectory, casts)


def named_rewards(rewards: object) -> str | None:
    """Several rewards as JSON; None where there are not several."""
    if not isinstance(rewards, Mapping) or len(rewards) < 2:
        return None
    return json.dumps(json_plain(dict(rewards)))


def _replies(record: RolloutRecord) -> int:
    return record.result.num_steps if record.result is not None else 0
