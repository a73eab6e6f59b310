"""Records to test with."""

from typing import Any

from agentenv.run.record import (
    GroupRecord,
    SequenceRecord,
    StepRecord,
    ToolCallRecord,
    TrajectoryRecord,
)


def scored_group(scores: list[float], *, tokens: int = 4) -> dict[str, Any]:
    rows = len(scores)
    return {
        "tokens": [list(range(tokens))] * rows,
        "masks": [[-100, *range(1, tokens)]] * rows,
        "scores": scores,
        "advantages": [],
        "ref_logprobs": [],
        "messages": None,
        "generation_params": None,
        "inference_logprobs": [[1.0, *[-0.5] * (tokens - 1)]] * rows,
        "overrides": [{}] * rows,
        "group_overrides": {},
        "images": [],
        "env_id": None,
        "distill_token_ids": None,
        "distill_logprobs": None,
    }


def trajectory(row: int, score: float, *, text: str = "done") -> TrajectoryRecord:
    call = ToolCallRecord("terminal", {"command": "ls"}, f"call-{row}", success=True, output=text)
    return TrajectoryRecord(
        trajectory_id=f"t{row}",
        outcome="scored",
        stop_reason="final_answer",
        score=score,
        final_response=text,
        messages=({"role": "user", "content": "list"}, {"role": "assistant", "content": text}),
        steps=(StepRecord(1, text, (call,), generation_s=0.1, tools_s=0.01),),
        sequences=(SequenceRecord(row=row, policy_versions=("v1",)),),
        sampled_tokens=3,
        duration_s=0.2,
    )


def group(
    number: int = 0, scores: tuple[float, ...] = (0.0, 1.0), *, text: str = "done"
) -> GroupRecord:
    return GroupRecord(
        group_id=f"g{number}",
        item_id=f"item-{number}",
        item_preview="list the files",
        group=scored_group(list(scores)),
        trajectories=tuple(trajectory(row, score, text=text) for row, score in enumerate(scores)),
        duration_s=1.5,
    )
