"""What a run leaves on disk, and its result, made of what happened. Nothing here runs anything."""

from __future__ import annotations

import secrets
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agentenv.outcomes import Outcome, StopReason
from agentenv.tasks.agents import AGENT_ERROR
from agentenv.tasks.results import (
    AgentContext,
    AgentInfo,
    ExceptionInfo,
    ModelInfo,
    StepResult,
    TrajectoryItem,
    VerifierResult,
)
from agentenv.tasks.templates import for_saving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agentenv.rollout import RolloutRecord
    from agentenv.tasks.agents import TaskAgent
    from agentenv.tasks.directory import TaskDirectory
    from agentenv.tasks.rolling import TaskRollout
    from agentenv.tasks.stepping import StepOutcome
    from agentenv.tokens.base import TokenSequence
    from agentenv.types import AgentResult

_BUDGETS = {
    StopReason.TIMEOUT: ("AgentTimeoutError", "the agent's time ran out"),
    StopReason.MAX_TOKENS: ("ContextLengthExceededError", "the agent's tokens ran out"),
    StopReason.MAX_STEPS: ("StepLimitError", "the agent's steps ran out"),
    StopReason.REFUSED: ("AgentRefusedError", "the model declined the task"),
}
"""Ends that are noted although the work was judged."""
_NAME_CHARS = 32
_SAVED_OPTIONS = (
    "verify",
    "agent_timeout_s",
    "verifier_timeout_s",
    "max_agent_timeout_s",
    "max_verifier_timeout_s",
    "timeout_multiplier",
    "extra_instructions",
    "artifacts",
    "accept_host_image",
    "seed",
)
"""The others may hold secrets."""


def trial_name(task: TaskDirectory) -> str:
    """A name for one run: the task's, cut, and seven random characters."""
    stem = task.short_name[:_NAME_CHARS].rstrip("_-")
    return f"{stem}__{secrets.token_hex(4)[:7]}"


def new_folder(output_dir: Path, task: TaskDirectory) -> Path:
    """Make `{output}/{task}_{timestamp}`, which did not exist. Raises `OSError`."""
    stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
    name = f"{task.short_name}_{stamp}"
    output_dir.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"_{secrets.token_hex(3)}" for _ in range(8))):
        path = output_dir / f"{name}{suffix}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path.resolve()
    raise FileExistsError(f"{output_dir / name} exists, and so do others like it")


def make_folder(path: Path) -> Path:
    """Make a folder that does not exist, with those above it. Raises `OSError`."""
    path.mkdir(parents=True)
    return path.resolve()


def saved_config(run: TaskRollout) -> dict[str, Any]:
    """What was asked for, as it may be written down."""
    task, agent, options = run.task, run.agent, run.options
    config = task.config.model_dump(mode="json")
    _save_envs(config, run.environ)
    return {
        "task": {"path": str(task.path), "profile": task.profile.value, "config": config},
        "agent": {"name": agent.name, "version": agent.version, "model": agent.model},
        "provider": run.provider,
        "options": {name: getattr(options, name) for name in _SAVED_OPTIONS},
    }


def _save_envs(value: Any, environ: Mapping[str, str]) -> None:
    if isinstance(value, dict):
        for name in ("env", "headers"):
            if isinstance(value.get(name), dict):
                value[name] = for_saving(value[name], environ)
        for each in value.values():
            _save_envs(each, environ)
    elif isinstance(value, list):
        for each in value:
            _save_envs(each, environ)


def agent_info(agent: TaskAgent) -> AgentInfo:
    """Which agent, and which model."""
    model = None
    if agent.model:
        provider, _, name = agent.model.rpartition("/")
        model = ModelInfo(name=name, provider=provider or None)
    return AgentInfo(name=agent.name, version=agent.version, model_info=model)


def exception_info(error: BaseException) -> ExceptionInfo:
    """An exception that is at hand."""
    trace = "".join(traceback.format_exception(error))
    return ExceptionInfo(
        exception_type=type(error).__name__,
        exception_message=str(error),
        exception_traceback=trace,
        occurred_at=datetime.now(UTC),
    )


def told_exception(name: str, message: str) -> ExceptionInfo:
    """An exception of which only this is known."""
    return ExceptionInfo(
        exception_type=name, exception_message=message, occurred_at=datetime.now(UTC)
    )


def exception_of(record: RolloutRecord, failure: BaseException | None) -> ExceptionInfo | None:
    """What a rollout's end is called in the format's words; None where nothing went wrong."""
    if failure is not None and record.outcome is not Outcome.SCORED:
        return exception_info(failure)
    if record.outcome in (Outcome.INFRASTRUCTURE_FAILED, Outcome.VERIFIER_FAILED):
        name, _, message = (record.cause or "").partition(": ")
        return told_exception(name, message)
    if record.outcome is Outcome.CANCELLED:
        return told_exception("CancelledError", "the rollout was withdrawn")
    if record.outcome is Outcome.AGENT_FAILED:
        return told_exception("AgentFailedError", record.cause or "the agent failed")
    return agent_exception(record.result)


def agent_exception(result: AgentResult | None) -> ExceptionInfo | None:
    """What is noted about an agent whose work was judged all the same."""
    if result is None:
        return None
    noted = result.metadata.get(AGENT_ERROR)
    if isinstance(noted, str):
        name, _, message = noted.partition(": ")
        return told_exception(name, message)
    if result.stop_reason in _BUDGETS:
        return told_exception(*_BUDGETS[result.stop_reason])
    return None


def agent_context(result: AgentResult | None) -> AgentContext | None:
    """What the agent used: what its harness says in `metadata["usage"]`, else what its replies' engine told."""
    if result is None:
        return None
    told = result.metadata.get("usage")
    known = told if isinstance(told, dict) else {}
    fields = {name: known[name] for name in AgentContext.model_fields if name in known}
    usage = result.usage
    if any(step.usage is not None for step in result.steps):
        fields.setdefault("n_input_tokens", usage.prompt_tokens)
        fields.setdefault("n_cache_tokens", usage.cached_tokens)
        fields.setdefault("cost_usd", usage.cost_usd)
    fields.setdefault("n_output_tokens", usage.completion_tokens or result.total_tokens)
    fields.setdefault("rollout_details", rollout_details(result.sequences))
    return AgentContext(
        **fields, metadata={"stop_reason": result.stop_reason.value, "n_steps": result.num_steps}
    )


def rollout_details(sequences: Sequence[TokenSequence]) -> list[dict[str, Any]] | None:
    """Tokens of each sequence, the agent's first one first, with a list per turn: its prompt with all that came before,
    what was sampled, and the log-prob of each token of that. None where no engine told tokens.
    """
    details = [_details(sequence) for sequence in sequences if sequence.turns]
    return details or None


def _details(sequence: TokenSequence) -> dict[str, Any]:
    turns, tokens = sequence.turns, sequence.tokens
    return {
        "prompt_token_ids": [tokens[: turn.start] for turn in turns],
        "completion_token_ids": [tokens[turn.start : turn.end] for turn in turns],
        "logprobs": [sequence.logprobs[turn.start : turn.end] for turn in turns],
        "extra": {
            "policy_version": [turn.policy_version for turn in turns],
            "finish_reason": [turn.finish_reason for turn in turns],
        },
    }


def trajectory_of(result: AgentResult | None) -> list[TrajectoryItem]:
    """Every tool call with what it gave, in order."""
    items = []
    for step in result.steps if result is not None else ():
        outputs = [given.output if given.success else f"{given.error}\n{given.output}".strip()
                   for given in step.tool_results]  # fmt: skip
        outputs += [""] * (len(step.tool_calls) - len(outputs))
        for call, output in zip(step.tool_calls, outputs, strict=False):
            item = TrajectoryItem(
                tool_name=call.name, tool_input=dict(call.arguments), tool_output=output
            )
            items.append(item)
    return items


def step_result(outcome: StepOutcome) -> StepResult:
    """One step, for result.json."""
    assert outcome.run.step.name is not None
    error = outcome.failure
    return StepResult(
        step_name=outcome.run.step.name,
        agent_result=agent_context(outcome.result),
        verifier_result=VerifierResult(rewards=outcome.rewards) if outcome.judged else None,
        exception_info=exception_info(error)
        if error is not None
        else agent_exception(outcome.result),
        agent_execution=outcome.agent_execution,
        verifier=outcome.verifier,
    )
