"""One line of `groups.jsonl`, as data: a group a trainer could read, and how each of its
trajectories came about.

The fourteen keys of a `ScoredDataGroup` stand at the top of the line, so a reader of the Atropos
form finds what it knows; ours stand beside them. Nothing here is behaviour but going to and from
JSON-plain dicts.

`schema_version` grows when a reader of the older form would misread the newer one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 1


class _Plain:
    """Going to and from dicts, one level deep: values are shared, not copied."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As a dict.

        Nested records become dicts too; lists of numbers are the very same objects.
        """
        return {spec.name: _to_json(getattr(self, spec.name)) for spec in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From a dict; keys that are not ours are left out.

        Raises `TypeError` when one of ours is missing.
        """
        names = {spec.name for spec in fields(cls)} & values.keys()
        return cls(**{name: values[name] for name in names})


def _to_json(value: Any) -> Any:
    if isinstance(value, _Plain):
        return value.to_json()
    return [_to_json(entry) for entry in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class ToolCallRecord(_Plain):
    """A tool call and its result."""

    name: str
    arguments: dict[str, Any]
    call_id: str
    success: bool
    output: str = ""
    error: str | None = None
    raw_text: str = ""
    """What the policy wrote, where it came from text."""
    metadata: dict[str, Any] = field(default_factory=dict)
    duration_s: float | None = None
    """None: not measured for this call alone."""
    images: tuple[dict[str, Any], ...] = ()
    """What the result showed beside its output, as `ImagePart.to_payload` has it, base64 included."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From a dict."""
        images = tuple(values.get("images", ()))
        return super(ToolCallRecord, cls).from_json({**values, "images": images})


@dataclass(frozen=True, slots=True)
class StepRecord(_Plain):
    """One reply of the policy and what its tool calls gave."""

    step_number: int
    """From 1."""
    assistant_text: str
    tool_calls: tuple[ToolCallRecord, ...] = ()
    generation_s: float = 0.0
    tools_s: float = 0.0
    reasoning: str | None = None
    """What the policy thought, where that is not in `assistant_text`."""
    usage: dict[str, Any] | None = None
    """What the reply took, with the fields of `Usage`; None where the engine did not tell."""
    started_at: float | None = None
    """Seconds since the epoch when the reply was asked for."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From a dict."""
        calls = tuple(ToolCallRecord.from_json(call) for call in values.get("tool_calls", ()))
        return super(StepRecord, cls).from_json({**values, "tool_calls": calls})


@dataclass(frozen=True, slots=True)
class SequenceRecord(_Plain):
    """One token sequence of a trajectory.

    A sequence that is a row of the group names that `row` and leaves its own lists empty: the
    group's hold it. `masks[i]` is `tokens[i]` where the policy sampled it and -100 elsewhere,
    `logprobs[i]` 1.0 where it did not.
    """

    row: int | None = None
    tokens: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    policy_versions: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    turns: tuple[tuple[Any, ...], ...] = ()
    """Of a sequence with its own lists: its replies, each with the fields of `Turn` in their order."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From a dict."""
        nested = {
            "policy_versions": tuple(values.get("policy_versions", ())),
            "turns": tuple(map(tuple, values.get("turns", ()))),
        }
        return super(SequenceRecord, cls).from_json({**values, **nested})


@dataclass(frozen=True, slots=True)
class TrajectoryRecord(_Plain):
    """One trajectory. `score` is None unless its outcome may be trained on."""

    trajectory_id: str
    outcome: str
    stop_reason: str
    score: float | None
    final_response: str = ""
    cause: str | None = None
    """What failed, where something did."""
    attempt: int = 1
    """From 1; more where infrastructure failed before."""
    score_metadata: dict[str, Any] = field(default_factory=dict)
    messages: tuple[dict[str, Any], ...] = ()
    """Text only: images are in the steps. Of an agent that was cut off, which has no steps: as far as it went."""
    steps: tuple[StepRecord, ...] = ()
    sequences: tuple[SequenceRecord, ...] = ()
    sampled_tokens: int = 0
    duration_s: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by part (waiting for a slot, generation, tools, verification), as far as measured."""
    casts: tuple[str, ...] = ()
    """Files in the run directory, one for each persistent shell and terminal it used, see `casts.py`."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From a dict."""
        nested = {
            "messages": tuple(values.get("messages", ())),
            "casts": tuple(values.get("casts", ())),
            "steps": tuple(StepRecord.from_json(step) for step in values.get("steps", ())),
            "sequences": tuple(
                SequenceRecord.from_json(entry) for entry in values.get("sequences", ())
            ),
        }
        return super(TrajectoryRecord, cls).from_json({**values, **nested})


@dataclass(frozen=True, slots=True)
class GroupRecord(_Plain):
    """One complete group."""

    group_id: str
    item_id: str | None
    item_preview: str
    """The task's first characters, for people."""
    group: Mapping[str, Any]
    """The `ScoredDataGroup`, all fourteen keys. In JSON they stand at the top of the line."""
    trajectories: tuple[TrajectoryRecord, ...]
    duration_s: float = 0.0
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """As the dict of one line."""
        values = super(GroupRecord, self).to_json()
        group = values.pop("group")
        return {"schema_version": values.pop("schema_version"), **values, **group}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From the dict of one line."""
        own = {spec.name for spec in fields(cls)}
        nested = {
            "group": {key: value for key, value in values.items() if key not in own},
            "trajectories": tuple(
                TrajectoryRecord.from_json(entry) for entry in values["trajectories"]
            ),
        }
        return super(GroupRecord, cls).from_json({**values, **nested})
