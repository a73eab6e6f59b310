"""Trajectories back as what trainers and chat models take: token sequences, and messages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentenv.atif.content import content_text
from agentenv.errors import TokensUnavailableError
from agentenv.tokens.base import IGNORE_TOKEN, MASKED_LOGPROB, TokenSequence, Turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentenv.atif.models import Metrics, Step, Trajectory


def to_sequences(
    trajectory: Trajectory, *, with_logprobs: bool = True, subagents: bool = False
) -> list[TokenSequence]:
    """The token sequences to train on; empty when no step has token ids.

    A reply whose prompt continues the prompt and reply before it, token for token, belongs to their sequence; another
    begins a new one. Copied context and steps without a model call are left out. `subagents`: also the sequences of
    embedded trajectories, after its own.

    Nothing is tokenised again. Raises `TokensUnavailableError` for a step with one kind of ids only, and for one
    without log-probs; `with_logprobs` False: those of every sequence are then an empty list, never made-up numbers.
    """
    drafts: list[_Draft] = []
    replies = 0
    for step in trajectory.steps:
        if step.source != "agent" or step.is_copied_context or step.llm_call_count == 0:
            continue
        replies += 1
        metrics = step.metrics
        if metrics is None:
            continue
        number = _sequence_number(metrics)
        if metrics.prompt_token_ids is None and metrics.completion_token_ids is None:
            if number is not None:
                if not drafts or drafts[-1].number != number:
                    drafts.append(_Draft(number))
                drafts[-1].note_empty(replies, metrics)
            continue
        prompt, completion, logprobs = _tokens_of(step, metrics, with_logprobs=with_logprobs)
        if not drafts or not drafts[-1].continues(prompt, number):
            drafts.append(_Draft(number))
        drafts[-1].append(replies, prompt, completion, logprobs, metrics)
    found = [draft.finish(with_logprobs=with_logprobs) for draft in drafts if draft.sampled]
    if subagents:
        for inner in trajectory.subagent_trajectories or ():
            found += to_sequences(inner, with_logprobs=with_logprobs, subagents=True)
    return found


def to_messages(trajectory: Trajectory) -> list[dict[str, Any]]:
    """The conversation in the OpenAI form: a step's calls in its assistant's message, one `tool` message a result.

    A step that compacted the context takes the place of everything before it, as the agent saw it. Images and sounds
    are said in text.
    """
    messages: list[dict[str, Any]] = []
    for step in trajectory.steps:
        if _replaces_context(step):
            results = step.observation.results if step.observation else ()
            shown = "\n".join(content_text(result.content) for result in results)
            messages = [{"role": "user", "content": shown or content_text(step.message)}]
        else:
            messages += _step_messages(step)
    return messages


def _step_messages(step: Step) -> Iterator[dict[str, Any]]:
    results = step.observation.results if step.observation else ()
    content = content_text(step.message)
    if step.source != "agent":
        shown = [content_text(result.content) for result in results]
        yield {"role": step.source, "content": "\n".join([content, *shown] if content else shown)}
        return
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if step.reasoning_content:
        message["reasoning_content"] = step.reasoning_content
    if step.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.tool_call_id,
                "type": "function",
                "function": {
                    "name": call.function_name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for call in step.tool_calls
        ]
    yield message
    for result in results:
        text = content_text(result.content)
        if result.source_call_id is None:
            yield {"role": "user", "content": text}
        else:
            yield {"role": "tool", "tool_call_id": result.source_call_id, "content": text}


def _replaces_context(step: Step) -> bool:
    managed = (step.extra or {}).get("context_management")
    return (
        step.source == "system"
        and isinstance(managed, dict)
        and managed.get("boundary") == "replace"
    )


@dataclass(slots=True)
class _Draft:
    """A sequence under way."""

    number: int | None
    """The writer's own number of it, where it gave one."""
    before: tuple[int, ...] = ()
    """The last prompt and its reply: what the next prompt has to begin with."""
    tokens: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    sampled: bool = False

    def continues(self, prompt: tuple[int, ...], number: int | None) -> bool:
        same = number is None or self.number is None or number == self.number
        return same and prompt[: len(self.before)] == self.before

    def append(
        self,
        reply: int,
        prompt: tuple[int, ...],
        completion: tuple[int, ...],
        logprobs: Iterable[float],
        metrics: Metrics,
    ) -> None:
        self.before = (*prompt, *completion)
        if completion:
            context = prompt[len(self.tokens) :]
            self.tokens += [*context, *completion]
            self.masks += [*[IGNORE_TOKEN] * len(context), *completion]
            self.logprobs += [*[MASKED_LOGPROB] * len(context), *logprobs]
            self.sampled = True
        end = len(self.tokens)
        self.turns.append(_turn(reply, end - len(completion), end, metrics))

    def note_empty(self, reply: int, metrics: Metrics) -> None:
        """A reply without a token."""
        end = len(self.tokens)
        self.turns.append(_turn(reply, end, end, metrics))

    def finish(self, *, with_logprobs: bool) -> TokenSequence:
        versions = [t.policy_version for t in self.turns if t.end > t.start and t.policy_version]
        return TokenSequence(
            tokens=self.tokens,
            masks=self.masks,
            logprobs=self.logprobs if with_logprobs else [],
            policy_versions=tuple(dict.fromkeys(versions)),
            metadata={"turns": len(self.turns), "finish_reason": self.turns[-1].finish_reason},
            turns=tuple(self.turns),
        )


def _turn(number: int, start: int, end: int, metrics: Metrics) -> Turn:
    extra = metrics.extra or {}
    version, reason = extra.get("policy_version"), extra.get("finish_reason")
    return Turn(
        number,
        start,
        end,
        None if version is None else str(version),
        reason if isinstance(reason, str) else "",
    )


def _sequence_number(metrics: Metrics) -> int | None:
    number = (metrics.extra or {}).get("sequence")
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _tokens_of(
    step: Step, metrics: Metrics, *, with_logprobs: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    prompt, completion = metrics.prompt_token_ids, metrics.completion_token_ids
    where = f"step {step.step_id}"
    if prompt is None or completion is None:
        missing = "prompt_token_ids" if prompt is None else "completion_token_ids"
        raise TokensUnavailableError(f"{where} has no {missing}: its sequence cannot be rebuilt")
    logprobs = metrics.logprobs or ()
    if with_logprobs and len(logprobs) != len(completion):
        raise TokensUnavailableError(
            f"{where} has {len(logprobs)} log-probs for {len(completion)} token ids; "
            "with_logprobs=False leaves them out"
        )
    return prompt, completion, logprobs if with_logprobs else ()
