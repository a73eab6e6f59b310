"""The rules of a `.dockerignore`: one pattern a line, `#` for comments, `!` takes back, the last match decides."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKENS = re.compile(
    r"(?P<deep>\*\*/?)|(?P<any>\*)|(?P<one>\?)|(?P<set>\[[^\]]+\])|\\?(?P<plain>.)", re.DOTALL
)


def ignored_by(rules: str) -> Callable[[str], bool]:
    """Whether a path, relative to the folder the rules are for, is left out."""
    patterns = []
    for line in rules.splitlines():
        rule = line.strip()
        if rule and not rule.startswith("#"):
            kept = rule.startswith("!")
            pattern = posixpath.normpath(rule.removeprefix("!").strip()).lstrip("/")
            patterns.append((kept, _compiled(pattern)))

    def is_ignored(path: str) -> bool:
        verdict = False
        for kept, pattern in patterns:
            if pattern.fullmatch(path):
                verdict = not kept
        return verdict

    return is_ignored


def _compiled(pattern: str) -> re.Pattern[str]:
    """Matches what the pattern names, and everything below that."""
    parts = []
    for token in _TOKENS.finditer(pattern):
        if token["deep"]:
            parts.append("(?:.*/)?" if token["deep"].endswith("/") else ".*")
        elif token["any"]:
            parts.append("[^/]*")
        elif token["one"]:
            parts.append("[^/]")
        elif token["set"]:
            parts.append(token["set"].replace("[!", "[^", 1))
        else:
            parts.append(re.escape(token["plain"]))
    return re.compile("".join(parts) + "(?:/.*)?", re.DOTALL)
