"""Trajectories for readers of older versions: what those do not know is left out or said in text, and noted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from agentenv.atif.content import content_text
from agentenv.atif.dialect import to_dialect
from agentenv.atif.models import Observation, ObservationResult, Step, Trajectory
from agentenv.atif.versions import DIALECT, SINCE, WRITTEN, minor_of
from agentenv.errors import ConfigError

if TYPE_CHECKING:
    from agentenv.atif.models import SubagentTrajectoryRef

EXPORTS = (WRITTEN, "ATIF-v1.8", "ATIF-v1.5", DIALECT)
"""What `export` makes."""


def export(trajectory: Trajectory, version: str = WRITTEN) -> dict[str, Any]:
    """A trajectory as JSON data of one of `EXPORTS`. Raises `ConfigError` for another version.

    1.7 and 1.8 keep everything, but that a trajectory with sound stays 1.8. 1.5 keeps text, calls, results and metrics:
    content parts become text, embedded trajectories are left out, sessions get an id, and each result has its call's
    id and text. The dialect keeps agent steps alone. What is left out of 1.5 is said in `notes`.
    """
    if version == DIALECT:
        return to_dialect(trajectory)
    if version == "ATIF-v1.5":
        return _v1_5(trajectory).to_json()
    if version in (WRITTEN, "ATIF-v1.8"):
        return with_version(trajectory, version).to_json()
    raise ConfigError(
        f"a trajectory cannot be exported as {version!r}; known: {', '.join(EXPORTS)}"
    )


def with_version(trajectory: Trajectory, version: str = WRITTEN) -> Trajectory:
    """The trajectory, and those in it, as 1.7, or as 1.8 where asked for or where it holds sound."""
    chosen = "ATIF-v1.8" if version == "ATIF-v1.8" or _has_sound(trajectory) else WRITTEN
    return _labelled(trajectory, chosen)


def _labelled(trajectory: Trajectory, version: str) -> Trajectory:
    inner = trajectory.subagent_trajectories
    steps = tuple(map(_with_ids_in_refs, trajectory.steps))
    changes: dict[str, Any] = {"schema_version": version, "steps": steps}
    if inner is not None:
        changes["subagent_trajectories"] = tuple(_labelled(entry, version) for entry in inner)
    return trajectory.model_copy(update=changes)


def _with_ids_in_refs(step: Step) -> Step:
    """References of versions before 1.7 name a session alone; that is then what the trajectory is known by."""
    results = step.observation.results if step.observation else ()
    if not any(result.subagent_trajectory_ref for result in results):
        return step
    changed = tuple(
        result.model_copy(
            update={"subagent_trajectory_ref": tuple(map(_with_id, result.subagent_trajectory_ref))}
        )
        if result.subagent_trajectory_ref
        else result
        for result in results
    )
    return step.model_copy(update={"observation": Observation(results=changed)})


def _with_id(ref: SubagentTrajectoryRef) -> SubagentTrajectoryRef:
    if ref.trajectory_id is not None or ref.trajectory_path is not None:
        return ref
    return ref.model_copy(update={"trajectory_id": ref.session_id})


def _has_sound(trajectory: Trajectory) -> bool:
    contents = [step.message for step in trajectory.steps]
    for step in trajectory.steps:
        results = step.observation.results if step.observation else ()
        contents += [result.content for result in results if result.content is not None]
    own = any(
        part.type == "audio"
        for content in contents
        if not isinstance(content, str)
        for part in content
    )
    return own or any(map(_has_sound, trajectory.subagent_trajectories or ()))


def _v1_5(trajectory: Trajectory) -> Trajectory:
    session = trajectory.session_id or trajectory.trajectory_id
    embedded = len(trajectory.subagent_trajectories or ())
    notes = [trajectory.notes] if trajectory.notes else []
    if embedded:
        notes.append(f"{embedded} embedded trajectories are left out of this version.")
    changes: dict[str, Any] = dict.fromkeys(_newer("trajectory"))
    changes |= {
        "schema_version": "ATIF-v1.5",
        "session_id": session or str(uuid5(NAMESPACE_OID, trajectory.model_dump_json())),
        "steps": tuple(map(_step_v1_5, trajectory.steps)),
        "notes": "\n".join(notes) or None,
    }
    return trajectory.model_copy(update=changes)


def _step_v1_5(step: Step) -> Step:
    message = content_text(step.message)
    changes: dict[str, Any] = dict.fromkeys(_newer("step"))
    if step.tool_calls is not None:
        newer = dict.fromkeys(_newer("tool_call"))
        changes["tool_calls"] = tuple(call.model_copy(update=newer) for call in step.tool_calls)
    if step.observation is not None:
        kept, told = _results_v1_5(step)
        message = "\n".join([*([message] if message else []), *told])
        changes["observation"] = Observation(results=kept) if kept else None
    return step.model_copy(update={**changes, "message": message})


def _results_v1_5(step: Step) -> tuple[tuple[ObservationResult, ...], list[str]]:
    """The results that name their call, and the text of those that cannot."""
    calls = step.tool_calls or ()
    only = calls[0].tool_call_id if len(calls) == 1 else None
    kept: list[ObservationResult] = []
    told: list[str] = []
    for result in step.observation.results if step.observation else ():
        source = result.source_call_id or only
        text = content_text(result.content)
        if source is None:
            told += [text] if text else []
            continue
        refs = result.subagent_trajectory_ref
        kept.append(
            ObservationResult(
                source_call_id=source,
                content=text or str((result.extra or {}).get("error") or ""),
                subagent_trajectory_ref=None if refs is None else tuple(map(_ref_v1_5, refs)),
            )
        )
    return tuple(kept), told


def _ref_v1_5(ref: SubagentTrajectoryRef) -> SubagentTrajectoryRef:
    session = ref.session_id or ref.trajectory_id or ref.trajectory_path
    return ref.model_copy(update={"session_id": session, "trajectory_id": None})


def _newer(kind: str) -> list[str]:
    minor = minor_of("ATIF-v1.5")
    assert minor is not None
    return [name for name, since in SINCE[kind].items() if since > minor]
