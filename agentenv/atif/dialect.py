"""The "1.0.0" dialect: the same content under other names, with results apart from the calls they answer.

Steps may use either vocabulary, so each is read by the keys it has. What has no place in the format is kept in
`extra`; what cannot be said in the dialect is left out of an export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from agentenv.atif.content import content_text
from agentenv.atif.versions import DIALECT, WRITTEN

if TYPE_CHECKING:
    from agentenv.atif.models import Step, Trajectory

_OWN_KEYS = frozenset({"model_response", "observations"})
_TOTALS = {
    "total_input_tokens": "total_prompt_tokens",
    "total_output_tokens": "total_completion_tokens",
    "total_steps": "total_steps",
}
_METRICS = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}


def from_dialect(data: dict[str, Any], *, instruction: str | None = None) -> dict[str, Any]:
    """The dialect's JSON data as the format's, to be validated. `instruction` becomes a first user step."""
    given = data.get("steps")
    steps = [_read_step(step) for step in given] if isinstance(given, list) else given
    if isinstance(steps, list):
        steps = _numbered(
            [{"source": "user", "message": instruction}, *steps]
            if instruction is not None
            else steps
        )
    rest = {key: value for key, value in data.items() if key not in ("steps", "final_metrics")}
    translated = {**rest, "schema_version": WRITTEN, "steps": steps}
    if translated.get("session_id") is None:
        translated["session_id"] = str(uuid5(NAMESPACE_OID, repr(data)))
    totals = data.get("final_metrics")
    if totals is not None:
        translated["final_metrics"] = _renamed(totals, _TOTALS)
        if (
            instruction is not None
            and isinstance(totals, dict)
            and isinstance(totals.get("total_steps"), int)
        ):
            translated["final_metrics"]["total_steps"] += 1
    return translated


def to_dialect(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory in the dialect: its agent steps, numbered anew. Other steps have no place there."""
    steps = [
        _written_step(number, step)
        for number, step in enumerate((s for s in trajectory.steps if s.source == "agent"), 1)
    ]
    agent = trajectory.agent
    written: dict[str, Any] = {
        "schema_version": DIALECT,
        "agent": {"name": agent.name, "version": agent.version},
        "steps": steps,
    }
    extra = {
        **(agent.extra or {}),
        **({"model_name": agent.model_name} if agent.model_name else {}),
    }
    if extra:
        written["agent"]["extra"] = extra
    written["final_metrics"] = {
        "total_steps": len(steps),
        "total_input_tokens": _total(trajectory, steps, "input_tokens"),
        "total_output_tokens": _total(trajectory, steps, "output_tokens"),
    }
    return written


def _total(trajectory: Trajectory, steps: list[dict[str, Any]], name: str) -> int:
    totals = trajectory.final_metrics
    known = None
    if totals is not None:
        known = (
            totals.total_prompt_tokens if name == "input_tokens" else totals.total_completion_tokens
        )
    return (
        known if known is not None else sum(step.get("metrics", {}).get(name, 0) for step in steps)
    )


def _numbered(steps: list[Any]) -> list[Any]:
    """Steps numbered from 1; what number a step had is in its `extra`."""
    for number, step in enumerate(steps, 1):
        if isinstance(step, dict):
            original = step.get("step_id", number)
            if original != number:
                extra = step.get("extra")
                step["extra"] = {**(extra if isinstance(extra, dict) else {}), "step_id": original}
            step["step_id"] = number
    return steps


def _read_step(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    calls, metrics = step.get("tool_calls"), step.get("metrics")
    read = {key: value for key, value in step.items() if key not in _OWN_KEYS}
    if isinstance(calls, list):
        read["tool_calls"] = [_read_call(call) for call in calls]
    if isinstance(metrics, dict):
        read["metrics"] = _renamed(metrics, _METRICS)
    if "model_response" in step:
        response = step["model_response"]
        read["message"] = "" if response is None else response
    read.setdefault("message", "")
    read.setdefault("source", "agent")
    observations = step.get("observations")
    if isinstance(observations, list):
        read["observation"] = {"results": [_read_result(entry) for entry in observations]}
    return read


def _read_call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    names = {
        "tool_id": "tool_call_id",
        "tool_name": "function_name",
        "tool_input": "arguments",
    }
    read = _renamed(call, names)
    if "arguments" in read and not isinstance(read["arguments"], dict):
        read["arguments"] = {"input": read["arguments"]}
    return read


def _read_result(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    read = {"source_call_id": entry.get("tool_id")}
    extra = {key: value for key, value in entry.items() if key not in ("tool_id", "observation")}
    told = entry.get("observation")
    if isinstance(told, dict):
        read["content"], error = told.get("content"), told.get("error")
        if error is not None:
            extra["error"] = error
            read["content"] = read["content"] or str(error)
    else:
        read["content"] = told
    return {**read, "extra": extra} if extra else read


def _written_step(number: int, step: Step) -> dict[str, Any]:
    results = step.observation.results if step.observation else ()
    written: dict[str, Any] = {
        "step_id": number,
        "model_response": content_text(step.message),
        "tool_calls": [
            {"tool_id": c.tool_call_id, "tool_name": c.function_name, "tool_input": c.arguments}
            for c in step.tool_calls or ()
        ],
        "observations": [
            {
                "observation_id": (result.extra or {}).get(
                    "observation_id", f"observation_{number}_{n}"
                ),
                "tool_id": result.source_call_id,
                "observation": {
                    "content": content_text(result.content or ""),
                    "error": (result.extra or {}).get("error"),
                },
            }
            for n, result in enumerate(results, 1)
        ],
    }
    if step.metrics is not None:
        written["metrics"] = {
            "input_tokens": step.metrics.prompt_tokens or 0,
            "output_tokens": step.metrics.completion_tokens or 0,
        }
    return written


def _renamed(values: Any, names: dict[str, str]) -> Any:
    if not isinstance(values, dict):
        return values
    return {names.get(key, key): value for key, value in values.items()}
