"""Which finished groups a trainer gets."""

from typing import Any

import pytest

from agentenv import AgentEnvConfig
from agentenv.api.client import TrainerInfo
from agentenv.serve.filters import serve_filters


def group(rows: int = 2, length: int = 3, scores: list[float] | None = None, **rest: Any) -> Any:
    scores = scores or [float(row) for row in range(rows)]
    return {"tokens": [[1] * length] * rows, "scores": scores, **rest}


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (group(), None),
        (group(rows=3), "size"),
        (group(rows=3, group_overrides={"group_size": 3}), None),
        (group(rows=3, group_overrides=None), "size"),
        (group(scores=[1.0, 1.0]), "equal"),
        (group(length=9), None),
        (group(length=10), "max_token_len"),
        (group(rows=1, scores=[1.0], group_overrides={"group_size": 1}), "equal"),
    ],
)
def test_a_group_is_dropped_for_its_size_its_scores_or_its_length(made: Any, reason: str | None):
    filters = serve_filters(AgentEnvConfig(group_size=2), lambda: TrainerInfo(8, 10))
    found = filters.reason(made)
    assert found is None if reason is None else reason in str(found)


def test_a_later_trainers_length_counts_from_then_on():
    infos = [TrainerInfo(8, -1), TrainerInfo(8, 4)]
    filters = serve_filters(AgentEnvConfig(group_size=2), lambda: infos.pop(0))
    assert filters.reason(group(length=5)) is None
    assert "max_token_len" in str(filters.reason(group(length=5)))
