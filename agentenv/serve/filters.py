"""Which finished groups a trainer gets, in Atropos' order: size, scores, length, then rules of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentenv.control.filters import GroupFilters, TooLong, equal_scores, load_filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv.api.client import TrainerInfo
    from agentenv.config import AgentEnvConfig
    from agentenv.control.filters import GroupFilter
    from agentenv.types import ScoredDataGroup


@dataclass(frozen=True, slots=True)
class RightSize:
    """Drops groups with another number of rows than the trainer expects of this environment."""

    group_size: int

    def __call__(self, group: ScoredDataGroup, /) -> str | None:
        """See `GroupFilter`."""
        overrides = group.get("group_overrides") or {}
        if len(group["tokens"]) == overrides.get("group_size", self.group_size):
            return None
        return "the group has another size than group_size, and no group_overrides that say so"


def serve_filters(config: AgentEnvConfig, info: Callable[[], TrainerInfo]) -> GroupFilters:
    """The rules of a configuration. `info` is asked for each group: a later trainer may want other lengths.

    Raises `ConfigError` for a rule of `group_filters` that cannot be loaded.
    """

    def too_long(group: ScoredDataGroup, /) -> str | None:
        return TooLong(info().max_token_len)(group)

    rules: list[GroupFilter] = [RightSize(config.group_size)]
    if config.ensure_scores_are_not_same:
        rules.append(equal_scores)
    rules.append(too_long)
    rules += [load_filter(path) for path in config.group_filters]
    return GroupFilters(rules)
