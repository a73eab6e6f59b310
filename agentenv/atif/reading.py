"""Trajectories from files: any version of the format and the "1.0.0" dialect, within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentenv.atif.checks import Problem, errors, validate
from agentenv.atif.dialect import from_dialect
from agentenv.atif.models import Trajectory
from agentenv.atif.versions import DIALECT, VERSIONS, minor_of
from agentenv.errors import AgentEnvError
from agentenv.run.jsonl import loads_strictly

MAX_FILE_BYTES = 512_000_000
MAX_DEPTH = 64
"""Lists and objects inside each other."""
MAX_STEPS = 100_000
MAX_CONTINUATIONS = 1_000
_SHOWN_PROBLEMS = 20


class TrajectoryFormatError(AgentEnvError, ValueError):
    """A trajectory cannot be read, or is not valid. `problems` holds every reason that was found."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


def read_trajectory(path: Path | str, *, strict: bool = False) -> Trajectory:
    """The trajectory in a file, or in the `trajectory.json` or `agent/trajectory.json` of a folder.

    `strict` holds it to its own version. Media files are not looked for: `validate` does that. Raises
    `TrajectoryFormatError`, which names every problem, and for a file that cannot be read.
    """
    file = trajectory_file(path)
    return parse_trajectory(load_json(file), strict=strict, name=str(file))


def read_continued(path: Path | str) -> list[Trajectory]:
    """A trajectory and those that continue it, in order: their references are followed, from each file's folder.

    Raises as `read_trajectory`, and for a circle.
    """
    file = trajectory_file(path)
    chain: list[Trajectory] = []
    seen: set[Path] = set()
    while True:
        if file.resolve() in seen or len(chain) >= MAX_CONTINUATIONS:
            raise TrajectoryFormatError(
                f"{file} continues a trajectory that continues it, or there are more than {MAX_CONTINUATIONS} files"
            )
        seen.add(file.resolve())
        chain.append(read_trajectory(file))
        following = chain[-1].continued_trajectory_ref
        if following is None:
            return chain
        file = file.parent / following


def parse_trajectory(
    data: object, *, strict: bool = False, name: str = "the trajectory"
) -> Trajectory:
    """A trajectory of JSON data. Raises `TrajectoryFormatError`; `name` says in it what was read."""
    data = to_atif(data, name=name)
    if isinstance(data, dict) and isinstance(data.get("steps"), list):
        count = len(data["steps"])
        if count > MAX_STEPS:
            raise TrajectoryFormatError(
                f"{name} has {count} steps, and at most {MAX_STEPS} are read"
            )
    problems = errors(validate(data, strict=strict))
    if not problems:
        try:
            return Trajectory.model_validate(data)
        except ValidationError as error:
            problems = [Problem("trajectory", str(error))]
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
    more = len(problems) - _SHOWN_PROBLEMS
    rest = f"\n  ... and {more} more" if more > 0 else ""
    raise TrajectoryFormatError(f"{name} is no valid trajectory:\n{shown}{rest}", tuple(problems))


def to_atif(data: object, *, name: str = "the trajectory") -> object:
    """JSON data in the format's own form: the dialect is translated, all else left as it is.

    Raises `TrajectoryFormatError` for nesting that is too deep, and for a version that is none of the known.
    """
    _check_depth(data, name)
    if not isinstance(data, dict):
        return data
    version = data.get("schema_version")
    if version == DIALECT:
        return from_dialect(data)
    if isinstance(version, str) and minor_of(version) is None:
        raise TrajectoryFormatError(
            f"{name}: schema_version {version[:80]!r} is none of those that are read: "
            f"{VERSIONS[0]} to {VERSIONS[-1]}, and {DIALECT!r}"
        )
    return data


def load_json(file: Path) -> Any:
    """What a file holds, strictly: no key twice, no NaN. Raises `TrajectoryFormatError`."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise TrajectoryFormatError(f"{str(file)!r} cannot be read: {error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise TrajectoryFormatError(
            f"{file} is larger than the {MAX_FILE_BYTES:,} bytes that are read"
        )
    try:
        return loads_strictly(raw.removeprefix(b"\xef\xbb\xbf"))
    except RecursionError as error:
        raise TrajectoryFormatError(f"{file} is nested too deep") from error
    except json.JSONDecodeError as error:
        raise TrajectoryFormatError(
            f"{file} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    except ValueError as error:
        raise TrajectoryFormatError(f"{file} is no JSON: {error}") from error


def trajectory_file(path: Path | str) -> Path:
    """The file meant by itself or by its folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    places = (path / "trajectory.json", path / "agent" / "trajectory.json")
    return next((place for place in places if place.is_file()), places[0])


def _check_depth(data: object, name: str) -> None:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
    raise TrajectoryFormatError(f"{name} is nested deeper than {MAX_DEPTH} levels")
