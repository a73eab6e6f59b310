"""`agentenv tasks check`: what is wrong with task directories, before anybody runs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.cli.commands import FAILED, OK
from agentenv.errors import ConfigError
from agentenv.run.panels import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from rich.console import Console

    from agentenv.tasks.checking import TaskCheck

_HELP = """
DIR is a task directory, or a folder with task directories below it. Each line begins with the place it is about.
Exit status: 0 all are valid, 1 some are not, 2 there is none.
"""


def add_tasks_parser(chosen: Any) -> list[argparse.ArgumentParser]:
    """Add the command; its parsers that take `--verbose`."""
    parser = chosen.add_parser("tasks", help="look at task directories")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check: argparse.ArgumentParser = actions.add_parser(
        "check", help="tell everything that is wrong with task directories", epilog=_HELP
    )
    check.add_argument("dirs", nargs="+", metavar="DIR")
    check.add_argument(
        "--profile",
        choices=("harbor", "agent_runner"),
        help="whose rules hold (default: by each task.toml)",
    )
    check.add_argument(
        "-p", "--pattern", default="**/task.toml", help="which files below DIR mark a task"
    )
    return [check]


def run_tasks_check(options: argparse.Namespace, console: Console) -> int:
    """Check, print, and return the exit status. Raises `ConfigError` where there is nothing to check."""
    from agentenv.tasks.checking import check_task  # noqa: PLC0415 - only this command needs it

    checks = [check_task(path, profile=options.profile) for path in _directories(options)]
    for check in checks:
        for line in _lines(check):
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    invalid = sum(not check.valid for check in checks)
    console.print(f"{len(checks)} checked, {invalid} invalid")
    return FAILED if invalid else OK


def _directories(options: argparse.Namespace) -> list[Path]:
    from agentenv.tasks.loader import TASK_FILE, discover_tasks  # noqa: PLC0415 - likewise

    found: list[Path] = []
    for name in options.dirs:
        path = Path(name)
        if not path.is_dir():
            raise ConfigError(f"{name}: no directory")
        below = [path] if (path / TASK_FILE).exists() else discover_tasks(path, options.pattern)
        if not below:
            raise ConfigError(f"{name}: no {options.pattern} in it, so there is no task to check")
        found += below
    return list(dict.fromkeys(found))


def _lines(check: TaskCheck) -> Iterator[str]:
    yield f"{check.path}: {'valid' if check.valid else 'invalid'}"
    for problem in check.problems:
        yield f"  problem: {problem}"
    for warning in check.warnings:
        yield f"  warning: {warning}"
