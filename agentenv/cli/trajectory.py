"""`agentenv trajectory`: trajectory files and those of a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from agentenv.errors import ConfigError
from agentenv.run.panels import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.console import Console

    from agentenv.atif.store import Trajectories
    from agentenv.evaluation.trajectories import SweepTrajectories

    Stored = Trajectories | SweepTrajectories

_VERSIONS = ("ATIF-v1.7", "ATIF-v1.8", "ATIF-v1.5", "1.0.0")
_VERSION_HELP = f"one of {', '.join(_VERSIONS)} (default: {_VERSIONS[0]})"


def add_trajectory_parser(chosen: Any) -> list[argparse.ArgumentParser]:
    """Add the command to the others; returns the parsers of its own commands."""
    parser: argparse.ArgumentParser = chosen.add_parser(
        "trajectory",
        help="list, export, validate and convert trajectories (ATIF)",
        description="Trajectories in the Agent Trajectory Interchange Format, versions 1.0 to 1.8.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="name the trajectories of a run directory")
    listing.add_argument("run_dir", metavar="RUN_DIR")
    export = actions.add_parser(
        "export", help="write trajectories of a run directory as files, their images beside them"
    )
    export.add_argument("run_dir", metavar="RUN_DIR")
    export.add_argument("ids", nargs="*", metavar="ID", help="an id, or its beginning")
    export.add_argument("--all", action="store_true", help="every trajectory")
    export.add_argument(
        "-o",
        "--output",
        default=".",
        metavar="DIR",
        help="a folder for each is made in it (default: here)",
    )
    export.add_argument("--version", choices=_VERSIONS, default=_VERSIONS[0], help=_VERSION_HELP)
    validate = actions.add_parser(
        "validate",
        help="name everything that is wrong with trajectory files; status 1 if anything is",
    )
    validate.add_argument("files", nargs="+", metavar="FILE", help="a file, or its folder")
    validate.add_argument(
        "--strict", action="store_true", help="only what the file's own version has, exact types"
    )
    validate.add_argument(
        "--no-media", action="store_true", help="do not look for the images and sounds it names"
    )
    convert = actions.add_parser("convert", help="write a trajectory file in another version")
    convert.add_argument("file", metavar="FILE", help="a file, or its folder")
    convert.add_argument("target", metavar="TARGET")
    convert.add_argument("--version", choices=_VERSIONS, default=_VERSIONS[0], help=_VERSION_HELP)
    return [listing, export, validate, convert]


def run_trajectory(options: argparse.Namespace, console: Console) -> int:
    """Run one of its commands. 1 when a file is not valid, else 0."""
    actions: dict[str, Callable[[argparse.Namespace, Console], int]] = {
        "list": _list,
        "export": _export,
        "validate": _validate,
        "convert": _convert,
    }
    return actions[options.action](options, console)


def _list(options: argparse.Namespace, console: Console) -> int:
    table = Table("trajectory", "outcome", "stopped by", "reward", "steps")
    with _stored(options) as stored:
        for entry in stored.summaries():
            reward = "" if entry.reward is None else f"{entry.reward:g}"
            cells = (entry.trajectory_id, entry.outcome, entry.stop_reason, reward)
            table.add_row(*(Text(printable(cell)) for cell in (*cells, str(entry.steps))))
    console.print(table)
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    with _stored(options) as stored:
        if bool(options.ids) == options.all:
            raise ConfigError("name the trajectories to export, or give --all")
        if options.all:
            return _export_all(stored, options, console)
        for name in [stored.find(word) for word in options.ids]:
            _say(console, str(_export_one(stored, name, options)))
    return 0


def _export_all(stored: Stored, options: argparse.Namespace, console: Console) -> int:
    """Every one, with a bar on a terminal and one line at the end."""
    done = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("exporting", total=stored.count())
        for entry in stored.summaries():
            _export_one(stored, entry.trajectory_id, options)
            done += 1
            progress.update(bar, completed=done)
    _say(console, f"{done:,} trajectories: {options.output}")
    return 0


def _export_one(stored: Stored, name: str, options: argparse.Namespace) -> Path:
    from agentenv.atif import write_trajectory  # noqa: PLC0415 - not needed by other commands

    file = Path(options.output) / _folder_name(name) / "trajectory.json"
    return write_trajectory(
        stored.read(name), file, images=stored.images(name), version=options.version
    )


def _validate(options: argparse.Namespace, console: Console) -> int:
    from agentenv.atif.checks import errors, validate  # noqa: PLC0415 - not needed by other commands
    from agentenv.atif.reading import (  # noqa: PLC0415
        TrajectoryFormatError,
        load_json,
        to_atif,
        trajectory_file,
    )

    valid = True
    for name in options.files:
        file = trajectory_file(name)
        try:
            data = to_atif(load_json(file), name=str(file))
        except TrajectoryFormatError as error:
            valid = False
            _say(console, f"error: {error}")
            continue
        folder = None if options.no_media else file.parent
        problems = validate(data, strict=options.strict, base_dir=folder)
        for problem in problems:
            _say(console, f"{file}: {problem.severity}: {problem}")
        if errors(problems):
            valid = False
        else:
            _say(console, f"{file}: valid")
    return 0 if valid else 1


def _convert(options: argparse.Namespace, console: Console) -> int:
    from agentenv.atif import read_trajectory, write_trajectory  # noqa: PLC0415 - not needed by others

    trajectory = read_trajectory(options.file)
    _say(console, str(write_trajectory(trajectory, options.target, version=options.version)))
    return 0


def _stored(options: argparse.Namespace) -> Stored:
    """Those of a run directory, of whatever kind it is."""
    from agentenv.evaluation.schema import DATABASE  # noqa: PLC0415

    if (Path(options.run_dir) / DATABASE).exists():
        from agentenv.evaluation.trajectories import SweepTrajectories  # noqa: PLC0415 - imports numpy

        return SweepTrajectories(options.run_dir)
    from agentenv.atif.store import Trajectories  # noqa: PLC0415 - not needed by other commands

    return Trajectories(options.run_dir)


def _folder_name(name: str) -> str:
    return "".join(part if part.isalnum() or part in "-_" else "-" for part in name) or "-"


def _say(console: Console, text: str) -> None:
    for line in text.splitlines():
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
