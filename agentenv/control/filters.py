"""Which finished groups are not worth sending, each with a reason that is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agentenv.errors import AgentEnvError, ConfigError
from agentenv.naming import load_attribute

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agentenv.types import ScoredDataGroup

_MAX_REASONS = 50


class GroupFilterError(AgentEnvError):
    """A filter raised, or answered with something that is no reason. The message names it."""


class GroupFilter(Protocol):
    """A rule about whole groups. It runs on the event loop, so it should take well under a millisecond."""

    def __call__(self, group: ScoredDataGroup, /) -> str | None:
        """Why the group should be dropped, in words that do not differ from group to group; None to keep it."""
        ...


def equal_scores(group: ScoredDataGroup, /) -> str | None:
    """Drops groups whose scores are all equal: they carry no advantage. A group of one is such a group."""
    if len(set(group["scores"])) < 2:
        return "all scores are equal (ensure_scores_are_not_same)"
    return None


@dataclass(frozen=True, slots=True)
class TooLong:
    """Drops groups with a sequence of `max_token_len` tokens or more: at that length already, as with Atropos.

    0 or less drops nothing.
    """

    max_token_len: int

    def __call__(self, group: ScoredDataGroup, /) -> str | None:
        """See `GroupFilter`."""
        if 0 < self.max_token_len <= max(map(len, group["tokens"]), default=0):
            return "a sequence is as long as the trainer's max_token_len or longer"
        return None


class GroupFilters:
    """Filters in a row. The first that objects decides; how often each reason was given is counted."""

    def __init__(self, filters: Iterable[GroupFilter] = ()) -> None:
        self._filters = tuple(filters)
        self._dropped: Counter[str] = Counter()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Groups dropped so far, by reason. Beyond fifty reasons they are counted as `others`."""
        return dict(self._dropped)

    def reason(self, group: ScoredDataGroup) -> str | None:
        """Why the group is dropped, which is then counted; None when every filter keeps it.

        Raises `GroupFilterError` when a filter fails: a broken rule must not decide what is trained on.
        """
        for rule in self._filters:
            found = _ask(rule, group)
            if found is not None:
                known = found in self._dropped or len(self._dropped) < _MAX_REASONS
                self._dropped[found if known else "others"] += 1
                return found
        return None


def group_filters(
    *, drop_equal_scores: bool, max_token_len: int = -1, custom: Sequence[str | GroupFilter] = ()
) -> GroupFilters:
    """The filters in Atropos' order (scores, then length), then custom ones: callables or `package.module:name`.

    Raises `ConfigError` for a path that cannot be loaded or is no callable.
    """
    rules: list[GroupFilter] = [equal_scores] if drop_equal_scores else []
    rules.append(TooLong(max_token_len))
    rules += [load_filter(rule) if isinstance(rule, str) else rule for rule in custom]
    return GroupFilters(rules)


def load_filter(path: str) -> GroupFilter:
    """The filter at `package.module:name`. Raises `ConfigError`."""
    found = load_attribute(f"group filter {path!r}", path)
    if not callable(found):
        raise ConfigError(
            f"group filter {path!r} is a {type(found).__name__}, which cannot be called"
        )
    rule: GroupFilter = found
    return rule


def _ask(rule: GroupFilter, group: ScoredDataGroup) -> str | None:
    name = getattr(rule, "__qualname__", type(rule).__qualname__)
    try:
        answer = rule(group)
    except Exception as error:
        raise GroupFilterError(
            f"group filter {name} raised {type(error).__name__}: {error}"
        ) from error
    if answer is not None and not (isinstance(answer, str) and answer):
        raise GroupFilterError(
            f"group filter {name} answered {answer!r}: it must return a reason to drop the group, or None to keep it"
        )
    return answer
