"""Glob patterns over paths, followed one name at a time, so that a walk can leave out whole folders.

`*` stands for any characters of one name (a leading dot too), `?` for one, `[abc]`, `[a-z]` and `[!a]` for one of a
set; `**` alone between slashes for any number of folders, also none. A pattern without a slash is about names at any
depth. Matching goes back to the last star only, so no pattern can make it take long.
"""

from __future__ import annotations

from .refusal import RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, FrozenSet, List, Optional, Sequence, Tuple

    Accepts = Callable[[str], bool]
    States = FrozenSet[int]
    Active = List[Tuple["Glob", States]]

MAX_PATTERN = 4096


class Glob:
    """One pattern. A state is how many of its segments the names so far have used up."""

    def __init__(self, pattern: str) -> None:
        segments = _segments(pattern)
        self._segments: List[Optional[Accepts]] = [
            None if segment == "**" else _name_matcher(segment) for segment in segments
        ]
        self.final = len(segments)
        self.start: States = self._closed([0])

    def step(self, states: States, name: str) -> States:
        """The states after one more name; none: nothing below it can match."""
        reached = []
        for state in states:
            if state == self.final:
                continue
            accepts = self._segments[state]
            if accepts is None:
                reached.append(state)
            elif accepts(name):
                reached.append(state + 1)
        return self._closed(reached)

    def _closed(self, states: List[int]) -> States:
        """With the states that are reached by letting `**` stand for no folder."""
        closed = set(states)
        for state in states:
            while state < self.final and self._segments[state] is None:
                state += 1  # noqa: PLW2901 - the way from this one
                closed.add(state)
        return frozenset(closed)


class Patterns:
    """Several patterns at once."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.start: Active = [(glob, glob.start) for glob in map(Glob, patterns)]


def step(active: Active, name: str) -> Active:
    """The patterns that may still match after one more name."""
    after = []
    for glob, states in active:
        reached = glob.step(states, name)
        if reached:
            after.append((glob, reached))
    return after


def accepted(active: Active) -> bool:
    """Whether one of the patterns matches the names so far."""
    return any(glob.final in states for glob, states in active)


def matches(patterns: Sequence[str], path: str) -> bool:
    """Whether one of the patterns matches a path as a whole. Raises `RefusedError` for what is no pattern."""
    active = Patterns(patterns).start
    for name in path.split("/"):
        active = step(active, name)
    return accepted(active)


def _segments(pattern: str) -> List[str]:
    if len(pattern) > MAX_PATTERN:
        raise RefusedError("bad_request", "a pattern has at most %d characters" % MAX_PATTERN)
    if pattern.startswith("/") or "\0" in pattern:
        raise RefusedError(
            "bad_request", "pattern %a: give it relative to cwd, without a leading /" % pattern
        )
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if ".." in names:
        raise RefusedError("bad_request", "pattern %a: it cannot go up; give another cwd" % pattern)
    if not names:
        raise RefusedError("bad_request", "pattern %a: it names nothing" % pattern)
    segments = ["**"] if len(names) == 1 else []
    for name in names:
        if name != "**" or segments[-1:] != ["**"]:
            segments.append(name)
    return [*segments, "*"] if segments[-1] == "**" else segments


def _name_matcher(segment: str) -> Accepts:
    if segment == "*":
        return lambda name: True
    if "?" in segment or "[" in segment or segment.count("*") > 1:
        tokens = _tokens(segment)
        return lambda name: _matches(tokens, name)
    if "*" not in segment:
        return segment.__eq__
    head, tail = segment.split("*")
    least = len(head) + len(tail)
    return lambda name: len(name) >= least and name.startswith(head) and name.endswith(tail)


def _tokens(segment: str) -> List[Optional[Accepts]]:
    """What accepts each character; None for a star."""
    tokens: List[Optional[Accepts]] = []
    at = 0
    while at < len(segment):
        character = segment[at]
        at += 1
        if character == "*":
            tokens.append(None)
        elif character == "?":
            tokens.append(lambda _: True)
        else:
            end = _end_of_set(segment, at) if character == "[" else -1
            tokens.append(_set(segment[at:end]) if end >= 0 else character.__eq__)
            at = end + 1 if end >= 0 else at
    return tokens


def _end_of_set(segment: str, at: int) -> int:
    """Where the `]` of a set is that begins at `at`; -1: it has none, and the bracket is a character like others."""
    if segment[at : at + 1] in ("!", "^"):
        at += 1
    return segment.find("]", at + 1)


def _set(text: str) -> Accepts:
    negated = text[0] in ("!", "^")
    if negated:
        text = text[1:]
    ranges = []
    while text:
        last = text[2] if len(text) > 2 and text[1] == "-" else text[0]
        ranges.append((text[0], last))
        text = text[3:] if len(text) > 2 and text[1] == "-" else text[1:]
    return lambda character: any(a <= character <= b for a, b in ranges) is not negated


def _matches(tokens: List[Optional[Accepts]], name: str) -> bool:
    at = token = 0
    star, after_star = -1, 0
    while at < len(name):
        accepts = tokens[token] if token < len(tokens) else _nothing
        if accepts is None:
            star, after_star = token, at
            token += 1
        elif accepts(name[at]):
            at += 1
            token += 1
        elif star >= 0:
            after_star += 1
            at, token = after_star, star + 1
        else:
            return False
    return all(accepts is None for accepts in tokens[token:])


def _nothing(_: str) -> bool:
    return False
