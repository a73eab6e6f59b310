"""Rollout records as rollouts leave them: of a dialogue in tokens, of a chat, and of what broke off."""

from collections.abc import Sequence
from typing import Any

from agentenv.atif import Agent
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.tokens.base import IGNORE_TOKEN, MASKED_LOGPROB, TokenSequence, Turn
from agentenv.types import AgentResult, AgentStep, Usage
from agentenv_tools.schema import ImagePart, ToolCall, ToolResult

AGENT = Agent(name="tester", version="1", model_name="tiny")
PIXEL = ImagePart(
    "image/png",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
    1,
    1,
)


def sequence(*turns: tuple[Sequence[int], Sequence[int]], first: int = 1) -> TokenSequence:
    """A sequence of turns, each the context that is new in it and its completion."""
    tokens: list[int] = []
    masks: list[int] = []
    logprobs: list[float] = []
    placed = []
    for number, (context, completion) in enumerate(turns, first):
        if completion:
            tokens += [*context, *completion]
            masks += [*[IGNORE_TOKEN] * len(context), *completion]
            logprobs += [
                *[MASKED_LOGPROB] * len(context),
                *(-0.1 * (n + 1) for n in range(len(completion))),
            ]
        end = len(tokens)
        reason = "stop" if completion else "length"
        placed.append(Turn(number, end - len(completion), end, f"v{number // 2}", reason))
    versions = dict.fromkeys(t.policy_version for t in placed if t.end > t.start)
    return TokenSequence(
        tokens,
        masks,
        logprobs,
        policy_versions=tuple(v for v in versions if v is not None),
        metadata={"turns": len(placed), "finish_reason": placed[-1].finish_reason},
        turns=tuple(placed),
    )


def step(
    number: int, *calls: ToolCall, results: Sequence[ToolResult] = (), **more: Any
) -> AgentStep:
    return AgentStep(
        number,
        f"<think>why {number}</think>say {number}",
        calls,
        tuple(results),
        content=f"say {number}",
        reasoning=f"why {number}",
        **more,
    )


def record(
    steps: Sequence[AgentStep] = (),
    sequences: Sequence[TokenSequence] = (),
    messages: Sequence[dict[str, Any]] | None = None,
    **more: Any,
) -> RolloutRecord:
    """What a rollout that was scored left."""
    if messages is None:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Do it."},
        ]
        for entry in steps:
            messages.append({"role": "assistant", "content": entry.assistant_message})
            if entry.tool_results:
                shown = "\n".join(result.to_xml() for result in entry.tool_results)
                messages.append({"role": "user", "content": shown})
    result = AgentResult(
        True,
        "done",
        StopReason.FINAL_ANSWER,
        steps=tuple(steps),
        sequences=tuple(sequences),
        messages=tuple(messages),
        total_tokens=sum(mask != IGNORE_TOKEN for seq in sequences for mask in seq.masks),
    )
    fields: dict[str, Any] = {
        "trajectory_id": "t-1",
        "outcome": Outcome.SCORED,
        "stop_reason": StopReason.FINAL_ANSWER,
        "reward": 0.5,
        "result": result,
        "duration_s": 2.0,
    }
    return RolloutRecord(**{**fields, **more})


def two_step_record(**more: Any) -> RolloutRecord:
    """A call with its result, then an answer; in one sequence of tokens."""
    call = ToolCall("terminal", {"command": "ls"}, uniq_id="call_1")
    steps = [
        step(1, call, results=[ToolResult(True, "a\nb", uniq_id="call_1")], usage=Usage(3, 2)),
        step(2, usage=Usage(7, 1, cached_tokens=4, cost_usd=0.25)),
    ]
    return record(steps, [sequence(([1, 2, 3], [4, 5]), ([6, 7], [8]))], **more)
