"""What a run was really made of: whoever compares two runs sees in lock.json whether they were of the same thing.

config.json has what was asked for; here is what came of it, with defaults and overrides applied.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from agentenv.tasks.templates import is_sensitive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv.tasks.rolling import TaskRollout

_HIDDEN = "****"


def lock_of(run: TaskRollout) -> dict[str, Any]:
    """The lock of a run that is over. Secrets are hidden; of variables there are names alone."""
    from agentenv import __version__  # noqa: PLC0415 - an import at the top would be a circle

    task, agent, options = run.task, run.agent, run.options
    return {
        "task": {
            "name": task.name,
            "path": str(task.path),
            "checksum": f"sha256:{task.checksum}",
            "profile": task.profile.value,
            "schema_version": task.config.schema_version,
            "source": task.config.source,
        },
        "agent": {"name": agent.name, "version": agent.version, "model": agent.model},
        "environment": {"provider": run.provider, "backend": _backend(run.values)},
        "steps": [
            {
                "name": step.name,
                "agent_timeout_sec": options.effective_agent_timeout_s(step.agent.timeout_sec),
                "verifier_timeout_sec": options.effective_verifier_timeout_s(
                    step.verifier.timeout_sec
                ),
                "verifier_environment_mode": step.verifier.mode,
            }
            for step in task.steps
        ],
        "seed": options.seed,
        "software": {"agentenv": __version__, "python": platform.python_version()},
    }


def _backend(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """None where no sandbox was asked for, as the task was refused."""
    if values is None:
        return None
    shown = _names_of_variables(values)
    if "services" in values:
        shown["services"] = [_names_of_variables(each) for each in values["services"]]
    plain: dict[str, Any] = _plain(shown)
    return plain


def _names_of_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "variables": sorted(values.get("variables", ()))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _HIDDEN if is_sensitive(str(key)) and each is not None else _plain(each)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, SecretStr):
        return _HIDDEN
    return str(value) if isinstance(value, Path) else value
