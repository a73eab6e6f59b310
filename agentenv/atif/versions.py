"""Which version of the format has what."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentenv.atif.models import SchemaVersion

VERSIONS = tuple(f"ATIF-v1.{minor}" for minor in range(9))
LATEST = VERSIONS[-1]
WRITTEN: SchemaVersion = "ATIF-v1.7"
"""What is written unless a trajectory holds sound."""
DIALECT = "1.0.0"
"""The `schema_version` of the dialect that `dialect` reads and writes."""

SINCE: dict[str, dict[str, int]] = {
    "trajectory": {
        "extra": 1,
        "continued_trajectory_ref": 5,
        "trajectory_id": 7,
        "subagent_trajectories": 7,
    },
    "agent": {"tool_definitions": 5},
    "step": {"is_copied_context": 5, "llm_call_count": 7},
    "tool_call": {"extra": 7},
    "result": {"extra": 7},
    "ref": {"trajectory_id": 7},
    "metrics": {"completion_token_ids": 3, "prompt_token_ids": 4},
}
"""Fields that came later than version 1.0, by object: the minor version that brought them."""

SYSTEM_OBSERVATIONS, CONTENT_PARTS, LOOSE_SESSIONS, AUDIO = 2, 6, 7, 8
"""The minor versions that brought observations of system steps, content parts, sessions that need no id, and sound."""

_NAME = re.compile(r"ATIF-v1\.([0-8])")


def minor_of(version: object) -> int | None:
    """The minor version that a `schema_version` names; None when it is none of the format's."""
    found = _NAME.fullmatch(version) if isinstance(version, str) else None
    return int(found[1]) if found else None
