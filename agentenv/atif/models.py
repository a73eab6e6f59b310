"""The Agent Trajectory Interchange Format as data: one frozen model for each object of its versions 1.0 to 1.8.

The models take the union of all versions' fields and refuse unknown ones; `checks` holds the rules that reach over
more than one field, and what each version did not have yet. None means that a field is absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

SchemaVersion = Literal[
    "ATIF-v1.0",
    "ATIF-v1.1",
    "ATIF-v1.2",
    "ATIF-v1.3",
    "ATIF-v1.4",
    "ATIF-v1.5",
    "ATIF-v1.6",
    "ATIF-v1.7",
    "ATIF-v1.8",
]
ImageType = Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
AudioType = Literal[
    "audio/wav",
    "audio/mpeg",
    "audio/mp4",
    "audio/aac",
    "audio/ogg",
    "audio/flac",
    "audio/webm",
    "audio/aiff",
]

_AUDIO_ALIASES = {
    "audio/mp3": "audio/mpeg",
    "audio/mpga": "audio/mpeg",
    "audio/x-mpeg": "audio/mpeg",
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-m4a": "audio/mp4",
    "audio/m4a": "audio/mp4",
    "audio/x-aac": "audio/aac",
    "audio/x-flac": "audio/flac",
    "audio/x-aiff": "audio/aiff",
}


def _audio_type(value: object) -> object:
    if not isinstance(value, str):
        return value
    name = value.strip().lower()
    return _AUDIO_ALIASES.get(name, name)


class _Object(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class ImageSource(_Object):
    """Where an image is: a path relative to the trajectory's file, an absolute one, or a URL."""

    media_type: ImageType
    path: str


class AudioSource(_Object):
    """Where a sound is. Common aliases of its media type are read as the type they mean."""

    media_type: Annotated[AudioType, BeforeValidator(_audio_type)]
    path: str
    duration_sec: float | None = Field(default=None, ge=0)


class ContentPart(_Object):
    """A piece of a message: `text` for type `text`, else a `source` of that kind."""

    type: Literal["text", "image", "audio"]
    text: str | None = None
    source: ImageSource | AudioSource | None = None


Content = str | tuple[ContentPart, ...]


class SubagentTrajectoryRef(_Object):
    """Points to the trajectory of an agent that this one started."""

    trajectory_id: str | None = None
    trajectory_path: str | None = None
    session_id: str | None = None
    extra: dict[str, Any] | None = None


class ToolCall(_Object):
    """A call an agent made."""

    tool_call_id: str
    function_name: str
    arguments: dict[str, Any]
    extra: dict[str, Any] | None = None


class ObservationResult(_Object):
    """What one call gave, or what the system added."""

    source_call_id: str | None = None
    content: Content | None = None
    subagent_trajectory_ref: tuple[SubagentTrajectoryRef, ...] | None = None
    extra: dict[str, Any] | None = None


class Observation(_Object):
    """The results of a step."""

    results: tuple[ObservationResult, ...]


class Metrics(_Object):
    """What one model call took. `prompt_tokens` includes `cached_tokens`. The token ids are those of the whole prompt
    and of the completion; `logprobs` belong to the completion's.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    completion_token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    extra: dict[str, Any] | None = None


class Step(_Object):
    """A message of the system or the user, or one model call with the results of its tool calls."""

    step_id: int = Field(ge=1)
    timestamp: str | None = None
    source: Literal["system", "user", "agent"]
    model_name: str | None = None
    reasoning_effort: str | float | None = None
    message: Content
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    observation: Observation | None = None
    metrics: Metrics | None = None
    is_copied_context: bool | None = None
    llm_call_count: int | None = Field(default=None, ge=0)
    extra: dict[str, Any] | None = None


class Agent(_Object):
    """Who acted, and what it could call."""

    name: str
    version: str
    model_name: str | None = None
    tool_definitions: tuple[dict[str, Any], ...] | None = None
    extra: dict[str, Any] | None = None


class FinalMetrics(_Object):
    """Totals. `total_cost_usd` includes subagents."""

    total_prompt_tokens: int | None = None
    total_completion_tokens: int | None = None
    total_cached_tokens: int | None = None
    total_cost_usd: float | None = None
    total_steps: int | None = Field(default=None, ge=0)
    extra: dict[str, Any] | None = None


class Trajectory(_Object):
    """What an agent did, from the first message to the last."""

    schema_version: SchemaVersion = "ATIF-v1.8"
    session_id: str | None = None
    trajectory_id: str | None = None
    agent: Agent
    steps: tuple[Step, ...]
    notes: str | None = None
    final_metrics: FinalMetrics | None = None
    continued_trajectory_ref: str | None = None
    extra: dict[str, Any] | None = None
    subagent_trajectories: tuple[Trajectory, ...] | None = None

    @field_validator("steps")
    @classmethod
    def _has_a_step(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if not steps:
            raise ValueError("a trajectory has at least one step")
        return steps

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without what is absent."""
        return self.model_dump(mode="json", exclude_none=True)
