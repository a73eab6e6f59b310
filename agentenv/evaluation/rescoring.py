"""Scoring trajectories again without running them: what a verifier is given then, and what it is refused.

A verifier that judges from the record alone (the final response, the messages, the steps) can be asked again at any
time. One that needs the workspace can where that was kept (`keep_workspaces`): then its files are put back into a new
sandbox of the same kind. Else it raises `WorkspaceGoneError`, and the sample keeps the score it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from agentenv.errors import SweepError
from agentenv.outcomes import StopReason
from agentenv.tokens.base import TokenSequence, Turn
from agentenv.types import AgentResult, AgentStep, Usage
from agentenv_tools.parsing import parse_reply
from agentenv_tools.schema import ImagePart, ToolCall, ToolResult

if TYPE_CHECKING:
    from agentenv.run.record import SequenceRecord, StepRecord, ToolCallRecord, TrajectoryRecord
    from agentenv.task import ExecTool


class WorkspaceGoneError(SweepError):
    """A verifier needs the workspace of a trajectory that ended long ago, and there is none to be put back."""


def no_workspace(reason: str) -> ExecTool:
    """The tools of a workspace that is gone."""

    async def exec_tool(call: ToolCall) -> ToolResult:
        raise WorkspaceGoneError(
            f"verification calls {call.name!r} in the workspace, which is gone: {reason}"
        )

    return exec_tool


class GoneMapping(dict[str, Any]):
    """What a workspace's set-up returned, where that was not recorded. Reading it raises `WorkspaceGoneError`."""

    def _gone(self, *_: object, **__: object) -> NoReturn:
        raise WorkspaceGoneError(
            "verification reads workspace_meta, which is not recorded: this sample keeps its score"
        )

    __getitem__ = get = keys = values = items = __iter__ = __len__ = __contains__ = __bool__ = _gone
    __eq__ = pop = setdefault = copy = _gone
    __hash__ = None


def agent_result(record: TrajectoryRecord) -> AgentResult:
    """What the agent did, as its verifier was told; with token sequences where they were kept."""
    return AgentResult(
        success=True,
        final_response=record.final_response,
        stop_reason=StopReason(record.stop_reason),
        steps=tuple(map(_step, record.steps)),
        sequences=tuple(map(_sequence, record.sequences)),
        messages=record.messages,
        total_tokens=record.sampled_tokens,
    )


def _step(step: StepRecord) -> AgentStep:
    return AgentStep(
        step_number=step.step_number,
        assistant_message=step.assistant_text,
        tool_calls=tuple(
            ToolCall(call.name, call.arguments, call.raw_text, call.call_id)
            for call in step.tool_calls
        ),
        tool_results=tuple(map(_result, step.tool_calls)),
        generation_s=step.generation_s,
        tools_s=step.tools_s,
        content=parse_reply(step.assistant_text).content if step.reasoning else None,
        reasoning=step.reasoning,
        usage=None if step.usage is None else Usage(**step.usage),
        started_at=step.started_at,
    )


def _sequence(sequence: SequenceRecord) -> TokenSequence:
    return TokenSequence(
        sequence.tokens,
        sequence.masks,
        sequence.logprobs,
        sequence.policy_versions,
        sequence.metadata,
        tuple(Turn(*turn) for turn in sequence.turns),
    )


def _result(call: ToolCallRecord) -> ToolResult:
    images = tuple(
        ImagePart(image["media_type"], image["data"], image["width"], image["height"])
        for image in call.images
    )
    return ToolResult(
        call.success, call.output, call.error, call.metadata, call.call_id, images=images
    )
