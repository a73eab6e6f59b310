"""What a rollout recorded, as a trajectory of the format.

One agent step for each reply of the policy, with the results of its tool calls; the messages before, between and after
them as system and user steps. Tokens are kept exactly: `sequences.to_sequences` gives back what the rollout recorded.

What the format has no field for stands in `extra`. Of the trajectory: `outcome`, `termination_reason`, `reward`,
`rewards` where the verifier gave several, `cause`, `score_metadata`, `duration_s`, `tool_seconds`. Of a step:
`generation_s`, `tools_s`. Of its metrics: `sequence` (from 1, which of the training sequences the reply is in),
`policy_version`, `finish_reason`. Of a tool's result: `success`, `error`, `metadata`. Of a call that was none: `error`
and `raw_text`, what the policy wrote.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agentenv.atif.models import (
    Agent,
    ContentPart,
    FinalMetrics,
    ImageSource,
    Metrics,
    Observation,
    ObservationResult,
    Step,
    ToolCall,
    Trajectory,
)
from agentenv.atif.tokens import attach_tokens, replies_of
from agentenv.atif.versions import WRITTEN
from agentenv.run.jsonl import json_plain
from agentenv.types import AgentStep, Usage
from agentenv_tools.parsing import parse_reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agentenv.atif.tokens import SampledReply
    from agentenv.rollout import RolloutRecord
    from agentenv.tokens.base import Message
    from agentenv.types import AgentResult
    from agentenv_tools.schema import ImagePart, ToolResult

IMAGES_FOLDER = "images"
_SUFFIXES = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
}


def from_rollout(
    record: RolloutRecord,
    *,
    agent: Agent,
    instruction: str | None = None,
    session_id: str | None = None,
    tokens: bool = True,
) -> Trajectory:
    """A rollout's trajectory, of version 1.7. Its images are those of `rollout_images`, by their paths.

    `instruction` is the first step of a rollout that has no message, because it ended before its agent began. `tokens`
    False leaves the ids and log-probs to be attached later.
    """
    result = record.result
    steps = list(_result_steps(result) if result else _message_steps(record.unfinished))
    if not steps:
        cause = record.cause or record.outcome.value
        steps = [
            _Draft("user", instruction)
            if instruction
            else _Draft("system", f"no agent ran: {cause}")
        ]
    trajectory = Trajectory(
        schema_version=WRITTEN,
        session_id=session_id or record.trajectory_id,
        trajectory_id=record.trajectory_id,
        agent=agent,
        steps=tuple(step.numbered(number) for number, step in enumerate(steps, 1)),
        final_metrics=_totals(steps),
        extra=_extra(record),
    )
    return attach_tokens(trajectory, result.sequences) if result and tokens else trajectory


def rollout_images(record: RolloutRecord) -> dict[str, ImagePart]:
    """The images that tools showed, by the paths that the trajectory names, relative to its file."""
    steps = record.result.steps if record.result else ()
    images: dict[str, ImagePart] = {}
    for number, step in enumerate(steps, 1):
        for at, result in enumerate(step.tool_results, 1):
            images |= dict(_images(number, at, result))
    return images


@dataclass(slots=True)
class _Draft:
    """A step that has no number yet."""

    source: str
    message: str
    reasoning: str | None = None
    timestamp: str | None = None
    calls: tuple[ToolCall, ...] = ()
    results: tuple[ObservationResult, ...] = ()
    metrics: Metrics | None = None
    extra: dict[str, Any] | None = None

    def numbered(self, number: int) -> Step:
        return Step.model_validate(
            {
                "step_id": number,
                "timestamp": self.timestamp,
                "source": self.source,
                "message": _writable(self.message),
                "reasoning_content": self.reasoning and _writable(self.reasoning),
                "tool_calls": self.calls or None,
                "observation": Observation(results=self.results) if self.results else None,
                "metrics": self.metrics,
                "llm_call_count": 1 if self.source == "agent" else None,
                "extra": self.extra,
            }
        )


def _extra(record: RolloutRecord) -> dict[str, Any]:
    rewards = record.score_metadata.get("rewards")
    values: dict[str, Any] = {
        "outcome": record.outcome.value,
        "termination_reason": record.stop_reason.value,
        "reward": record.reward,
        "rewards": rewards if isinstance(rewards, dict) else None,
        "cause": record.cause,
        "score_metadata": record.score_metadata or None,
        "duration_s": round(record.duration_s, 6),
        "tool_seconds": round(record.tool_seconds, 6),
    }
    plain: dict[str, Any] = json_plain({k: v for k, v in values.items() if v is not None})
    return plain


def _totals(steps: Sequence[_Draft]) -> FinalMetrics:
    told = [step.metrics for step in steps if step.metrics is not None]
    costs = [metrics.cost_usd for metrics in told if metrics.cost_usd is not None]
    counted = any(metrics.prompt_tokens is not None for metrics in told)
    return FinalMetrics(
        total_prompt_tokens=sum(m.prompt_tokens or 0 for m in told) if counted else None,
        total_completion_tokens=sum(m.completion_tokens or 0 for m in told) if counted else None,
        total_cached_tokens=sum(m.cached_tokens or 0 for m in told) if counted else None,
        total_cost_usd=sum(costs) if costs else None,
        total_steps=len(steps),
    )


def _result_steps(result: AgentResult) -> Iterator[_Draft]:
    """The conversation of an agent that came to an end."""
    sampled = replies_of(result.sequences)
    replies = itertools.count(1)
    number = 0
    for message in result.messages:
        if message.get("role") == "assistant":
            number = next(replies)
            yield _reply(number, _step_of(result, number, message), sampled.pop(number, None))
        elif number == 0 or not _answers_calls(result, number, message):
            yield _Draft(str(message.get("role")), _text(message.get("content")))
    for left in sorted({*range(number + 1, len(result.steps) + 1), *sampled}):
        yield _reply(left, _step_of(result, left, {}), sampled.get(left))


def _step_of(result: AgentResult, number: int, message: dict[str, Any]) -> AgentStep:
    """The step of a reply; of one that was cut off before its tools had answered, what the message says."""
    if number <= len(result.steps):
        return result.steps[number - 1]
    return AgentStep(number, _text(message.get("content")))


def _answers_calls(result: AgentResult, number: int, message: dict[str, Any]) -> bool:
    """Whether a user's message is only the form in which results of the step before were shown to the policy."""
    step = result.steps[number - 1] if number <= len(result.steps) else None
    is_form = _text(message.get("content")).startswith("<tool_response>")
    return message.get("role") == "tool" or (is_form and (step is None or bool(step.tool_results)))


def _message_steps(messages: Iterable[Message]) -> Iterator[_Draft]:
    """The conversation of an agent that was cut off."""
    draft: _Draft | None = None
    for message in messages:
        if message.role == "tool":
            if draft is not None and draft.source == "agent":
                known = any(c.tool_call_id == message.tool_call_id for c in draft.calls)
                source = message.tool_call_id if known else None
                draft.results += (
                    ObservationResult(source_call_id=source, content=_writable(message.content)),
                )
            continue
        if draft is not None:
            yield draft
        source = "agent" if message.role == "assistant" else message.role
        calls = tuple(map(_call, message.tool_calls))
        draft = _Draft(source, message.content, reasoning=message.reasoning, calls=calls)
    if draft is not None:
        yield draft


def _reply(number: int, step: AgentStep, sampled: SampledReply | None) -> _Draft:
    content, reasoning = step.content, step.reasoning
    if content is None:
        read = parse_reply(step.assistant_message)
        content, reasoning = read.content, read.reasoning
    seconds = {"generation_s": step.generation_s, "tools_s": step.tools_s}
    return _Draft(
        "agent",
        content,
        reasoning=reasoning,
        timestamp=_timestamp(step.started_at),
        calls=tuple(map(_call, step.tool_calls)),
        results=tuple(
            _result(number, at, step, result) for at, result in enumerate(step.tool_results, 1)
        ),
        metrics=_metrics(step.usage, sampled),
        extra={k: round(v, 6) for k, v in seconds.items()} if any(seconds.values()) else None,
    )


def _call(call: Any) -> ToolCall:
    extra = {"error": call.error, "raw_text": call.raw_text} if call.error else None
    return ToolCall(
        tool_call_id=_writable(call.uniq_id),
        function_name=_writable(call.name),
        arguments=json_plain(call.arguments),
        extra=None if extra is None else json_plain(extra),
    )


def _result(number: int, at: int, step: AgentStep, result: ToolResult) -> ObservationResult:
    """A result answers the call in its place: of several calls with one id, each has its own."""
    text = _writable(result.output or result.error or "")
    images = [
        ContentPart(type="image", source=ImageSource(media_type=image.media_type, path=path))  # type: ignore[arg-type]
        for path, image in _images(number, at, result)
    ]
    told = {"success": result.success, "error": result.error, "metadata": result.metadata}
    calls = step.tool_calls
    return ObservationResult(
        source_call_id=_writable(calls[at - 1].uniq_id) if at <= len(calls) else None,
        content=(ContentPart(type="text", text=text), *images) if images else text,
        extra=json_plain({key: value for key, value in told.items() if value not in (None, {})}),
    )


def _images(number: int, at: int, result: ToolResult) -> Iterator[tuple[str, ImagePart]]:
    for place, image in enumerate(result.images, 1):
        name = f"step{number}-call{at}-{place}.{_SUFFIXES[image.media_type]}"
        yield f"{IMAGES_FOLDER}/{name}", image


def _metrics(usage: Usage | None, sampled: SampledReply | None) -> Metrics | None:
    if sampled is None:
        return None if usage is None else _usage_metrics(usage)
    turn = sampled.turn
    extra = {
        "sequence": sampled.sequence,
        "policy_version": turn.policy_version,
        "finish_reason": turn.finish_reason or None,
    }
    counted = _usage_metrics(usage or Usage(turn.start, turn.end - turn.start))
    told = {key: value for key, value in extra.items() if value is not None}
    return counted.model_copy(update={"extra": told})


def _usage_metrics(usage: Usage) -> Metrics:
    return Metrics(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens or None,
        cost_usd=usage.cost_usd,
    )


def _text(content: object) -> str:
    """A chat message's content, without its images."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _timestamp(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _writable(text: str) -> str:
    """Text that UTF-8 has: lone surrogates become `?`."""
    return text.encode("utf-8", "replace").decode()
