"""Whether a trajectory is valid, with every reason why not.

`validate` looks at plain JSON data, so one wrong field does not hide the others. Lenient, it takes the union of all
versions' fields, as readers of the format do; strict, it holds a file to its own version and to exact types.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from agentenv.atif.models import Trajectory
from agentenv.atif.versions import (
    AUDIO,
    CONTENT_PARTS,
    LATEST,
    LOOSE_SESSIONS,
    SINCE,
    SYSTEM_OBSERVATIONS,
    minor_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = "trajectory"
_AGENT_ONLY = (
    "model_name",
    "reasoning_effort",
    "reasoning_content",
    "tool_calls",
    "metrics",
)
_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a trajectory. A warning makes it no less valid."""

    path: str
    """Where, from `trajectory`: `trajectory.steps.3.message`. Places in lists count from 0."""
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def validate(
    data: object, *, strict: bool = False, base_dir: Path | str | None = None
) -> list[Problem]:
    """Every problem of a trajectory given as JSON data; no error among them means that it is valid.

    `strict`: only what its own version has, and no number written as text. `base_dir`: the folder of the trajectory's
    file, to look for the images and sounds it names; None: they are not looked for. Never raises for what is in `data`.
    """
    if not isinstance(data, dict):
        return [Problem(ROOT, f"a JSON object is expected, not {type(data).__name__}")]
    problems = _shape(data, strict=strict)
    check = _Check(strict=strict, base_dir=None if base_dir is None else Path(base_dir))
    check.trajectory(ROOT, data, embedded=False)
    seen = {(problem.path, problem.message) for problem in problems}
    problems += [p for p in check.problems if (p.path, p.message) not in seen]
    return problems


def errors(problems: list[Problem]) -> list[Problem]:
    """The problems that make a trajectory invalid."""
    return [problem for problem in problems if problem.severity == "error"]


def _shape(data: dict[str, Any], *, strict: bool) -> list[Problem]:
    """Types, required fields, unknown keys and literals."""
    try:
        if strict:
            Trajectory.model_validate_json(json.dumps(data), strict=True)
        else:
            Trajectory.model_validate(data)
    except ValidationError as error:
        found = {
            (_path(problem["loc"]), _said(problem["msg"], problem["input"]))
            for problem in error.errors(include_url=False, include_context=False)
        }
        return [Problem(path, message) for path, message in sorted(found)]
    except (ValueError, RecursionError) as error:
        return [Problem(ROOT, f"it cannot be read as JSON data: {error}")]
    return []


_BRANCHES = frozenset(
    {
        "str",
        "float",
        "tuple[ContentPart, ...]",
        "ImageSource",
        "AudioSource",
        "tuple[ContentPart,...]",
    }
)
"""What pydantic puts into the place of an error for each type of a union it tried."""


def _path(place: tuple[int | str, ...]) -> str:
    return ".".join([ROOT, *(str(part) for part in place if part not in _BRANCHES)])


def _said(message: str, value: object) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}..."
    return message if message == "Field required" else f"{message} (it is {shown})"


@dataclass(slots=True)
class _Check:
    """The rules that reach over more than one field, on data whose shape may be wrong."""

    strict: bool
    base_dir: Path | None
    problems: list[Problem] = field(default_factory=list)
    minor: int | None = None

    def trajectory(self, path: str, data: dict[str, Any], *, embedded: bool) -> None:
        """One trajectory and those in it."""
        before, self.minor = self.minor, minor_of(data.get("schema_version", LATEST))
        if self.strict and data.get("schema_version") is None:
            self._error(f"{path}.schema_version", "Field required")
        self._since(path, "trajectory", data)
        self._session(path, data)
        if embedded and not data.get("trajectory_id"):
            self._error(f"{path}.trajectory_id", "an embedded trajectory needs one")
        self._since(f"{path}.agent", "agent", _dict(data.get("agent")))
        steps = _list(data.get("steps"))
        for number, step in enumerate(steps):
            if isinstance(step, dict):
                self._step(f"{path}.steps.{number}", number + 1, step)
        self._totals(path, data, len(steps))
        self._embedded(path, data)
        self._refs_match(path, data, steps)
        self.minor = before

    def _embedded(self, path: str, data: dict[str, Any]) -> None:
        inner = _list(data.get("subagent_trajectories"))
        ids = Counter(_ids(inner))
        for number, entry in enumerate(inner):
            if not isinstance(entry, dict):
                continue
            place = f"{path}.subagent_trajectories.{number}"
            name = entry.get("trajectory_id")
            if isinstance(name, str) and ids[name] > 1:
                self._error(f"{place}.trajectory_id", f"{name!r} is not unique in its list")
            self.trajectory(place, entry, embedded=True)

    def _session(self, path: str, data: dict[str, Any]) -> None:
        needed = self.strict and self.minor is not None and self.minor < LOOSE_SESSIONS
        if needed and data.get("session_id") is None:
            self._error(
                f"{path}.session_id", f"versions before 1.{LOOSE_SESSIONS} need a session_id"
            )

    def _step(self, path: str, expected: int, step: dict[str, Any]) -> None:
        self._since(path, "step", step)
        if step.get("step_id") not in (expected, str(expected)):
            self._error(
                f"{path}.step_id",
                f"steps are numbered from 1 in order: {expected} is expected, not {step.get('step_id')!r}",
            )
        self._timestamp(path, step.get("timestamp"))
        self._source(path, step)
        self._calls_of_none(path, step)
        self._content(f"{path}.message", step.get("message"))
        call_ids = self._tool_calls(path, step)
        results = _list(_dict(step.get("observation")).get("results"))
        for number, result in enumerate(results):
            if isinstance(result, dict):
                self._result(f"{path}.observation.results.{number}", result, call_ids)
        self._metrics(f"{path}.metrics", _dict(step.get("metrics")))

    def _timestamp(self, path: str, value: object) -> None:
        if not isinstance(value, str):
            return
        try:
            if value.isdigit() and len(value) != 8:
                raise ValueError(value)
            datetime.fromisoformat(value)
        except ValueError:
            self._error(f"{path}.timestamp", f"{value[:_SHOWN_CHARS]!r} is no ISO 8601 date")

    def _source(self, path: str, step: dict[str, Any]) -> None:
        source = step.get("source")
        if source not in ("system", "user"):
            return
        for name in _AGENT_ONLY:
            if step.get(name) is not None:
                self._error(
                    f"{path}.{name}", f"only agent steps have it, and this is a {source} step"
                )
        if not self.strict or step.get("observation") is None:
            return
        if source == "user":
            self._error(f"{path}.observation", "user steps have none")
        elif self.minor is not None and self.minor < SYSTEM_OBSERVATIONS:
            self._error(
                f"{path}.observation", f"system steps have one since 1.{SYSTEM_OBSERVATIONS}"
            )

    def _calls_of_none(self, path: str, step: dict[str, Any]) -> None:
        count = step.get("llm_call_count")
        if isinstance(count, bool) or count != 0 or step.get("source") != "agent":
            return
        for name in ("metrics", "reasoning_content"):
            if step.get(name) is not None:
                self._error(f"{path}.{name}", "a step with llm_call_count 0 made no model call")

    def _tool_calls(self, path: str, step: dict[str, Any]) -> set[str]:
        """The ids of a step's calls."""
        ids: Counter[str] = Counter()
        for number, call in enumerate(_list(step.get("tool_calls"))):
            if isinstance(call, dict):
                self._since(f"{path}.tool_calls.{number}", "tool_call", call)
                if isinstance(call.get("tool_call_id"), str):
                    ids[call["tool_call_id"]] += 1
        for name, count in ids.items():
            if count > 1:
                self._warn(f"{path}.tool_calls", f"{count} calls have the id {name!r}")
        return set(ids)

    def _result(self, path: str, result: dict[str, Any], call_ids: set[str]) -> None:
        self._since(path, "result", result)
        source = result.get("source_call_id")
        if isinstance(source, str) and source not in call_ids:
            self._error(f"{path}.source_call_id", f"{source!r} is no tool_call_id of this step")
        self._content(f"{path}.content", result.get("content"))
        for number, ref in enumerate(_list(result.get("subagent_trajectory_ref"))):
            if isinstance(ref, dict):
                self._ref(f"{path}.subagent_trajectory_ref.{number}", ref)

    def _ref(self, path: str, ref: dict[str, Any]) -> None:
        self._since(path, "ref", ref)
        old = self.minor is not None and self.minor < LOOSE_SESSIONS
        if old and self.strict and ref.get("session_id") is None:
            self._error(
                f"{path}.session_id", f"versions before 1.{LOOSE_SESSIONS} refer by session_id"
            )
        keys = ("trajectory_id", "trajectory_path", *(("session_id",) if old else ()))
        if all(ref.get(key) is None for key in keys):
            self._error(path, f"it refers to nothing: give {' or '.join(keys)}")

    def _content(self, path: str, content: object) -> None:
        if not isinstance(content, list):
            return
        if self.strict and self.minor is not None and self.minor < CONTENT_PARTS:
            self._error(path, f"content parts exist since 1.{CONTENT_PARTS}; this has to be text")
        for number, part in enumerate(content):
            if isinstance(part, dict):
                self._part(f"{path}.{number}", part)

    def _part(self, path: str, part: dict[str, Any]) -> None:
        kind, text, source = part.get("type"), part.get("text"), part.get("source")
        if kind == "text":
            if text is None:
                self._error(f"{path}.text", "a text part needs a text")
            if source is not None:
                self._error(f"{path}.source", "a text part has no source")
        elif kind in ("image", "audio"):
            if text is not None:
                self._error(f"{path}.text", f"an {kind} part has no text")
            if source is None:
                self._error(f"{path}.source", f"an {kind} part needs a source")
            self._media(f"{path}.source", kind, _dict(source))
        if self.strict and kind == "audio" and self.minor is not None and self.minor < AUDIO:
            self._error(path, f"audio exists since 1.{AUDIO}")

    def _media(self, path: str, kind: str, source: dict[str, Any]) -> None:
        media_type, place = source.get("media_type"), source.get("path")
        if isinstance(media_type, str) and not media_type.strip().lower().startswith(f"{kind}/"):
            self._error(f"{path}.media_type", f"{media_type!r} is no media type of an {kind} part")
        if self.base_dir is None or not isinstance(place, str) or "://" in place:
            return
        try:
            there = (self.base_dir / place).is_file()
        except (OSError, ValueError):  # a path that no file can have
            there = False
        if not there:
            self._error(
                f"{path}.path", f"there is no file {place[:_SHOWN_CHARS]!r} beside the trajectory"
            )

    def _metrics(self, path: str, metrics: dict[str, Any]) -> None:
        self._since(path, "metrics", metrics)
        prompt, cached = _count(metrics, "prompt_tokens"), _count(metrics, "cached_tokens")
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "cost_usd"):
            value = metrics.get(name)
            if isinstance(value, int | float) and value < 0:
                self._warn(f"{path}.{name}", f"{value} is below 0")
        if prompt is not None and cached is not None and cached > prompt:
            self._warn(
                f"{path}.cached_tokens", f"{cached} are more than the {prompt} of the prompt"
            )
        self._equal(path, metrics, "completion_token_ids", "completion_tokens")
        self._equal(path, metrics, "prompt_token_ids", "prompt_tokens")
        ids, logprobs = metrics.get("completion_token_ids"), metrics.get("logprobs")
        if isinstance(ids, list) and isinstance(logprobs, list) and len(ids) != len(logprobs):
            self._warn(f"{path}.logprobs", f"{len(logprobs)} for {len(ids)} completion_token_ids")

    def _equal(self, path: str, metrics: dict[str, Any], ids: str, count: str) -> None:
        listed, counted = metrics.get(ids), _count(metrics, count)
        if isinstance(listed, list) and counted is not None and len(listed) != counted:
            self._warn(f"{path}.{ids}", f"{len(listed)} ids, and {count} is {counted}")

    def _totals(self, path: str, data: dict[str, Any], steps: int) -> None:
        total = _count(_dict(data.get("final_metrics")), "total_steps")
        if total is not None and total != steps and not data.get("notes"):
            self._warn(
                f"{path}.final_metrics.total_steps",
                f"{total}, and there are {steps} steps: `notes` should say why",
            )

    def _refs_match(self, path: str, data: dict[str, Any], steps: list[Any]) -> None:
        embedded = set(_ids(data.get("subagent_trajectories")))
        for place, ref in _refs(path, steps):
            name = ref.get("trajectory_id")
            if not isinstance(name, str) or ref.get("trajectory_path") is not None:
                continue
            if name not in embedded:
                self._warn(f"{place}.trajectory_id", f"no embedded trajectory is {name!r}")

    def _since(self, path: str, kind: str, data: dict[str, Any]) -> None:
        if not self.strict or self.minor is None:
            return
        for name, since in SINCE[kind].items():
            if since > self.minor and data.get(name) is not None:
                self._error(f"{path}.{name}", f"exists since 1.{since}, and this is 1.{self.minor}")

    def _error(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def _warn(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message, "warning"))


def _refs(path: str, steps: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every reference to another trajectory, with its place."""
    for number, step in enumerate(steps):
        results = _list(_dict(_dict(step).get("observation")).get("results"))
        for index, result in enumerate(results):
            for at, ref in enumerate(_list(_dict(result).get("subagent_trajectory_ref"))):
                if isinstance(ref, dict):
                    place = f"{path}.steps.{number}.observation.results.{index}"
                    yield f"{place}.subagent_trajectory_ref.{at}", ref


def _ids(trajectories: object) -> list[str]:
    names = [_dict(entry).get("trajectory_id") for entry in _list(trajectories)]
    return [name for name in names if isinstance(name, str)]


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(values: dict[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
