"""`agentenv cleanup`: removes what dead runs left behind, and shows what that was."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from agentenv.run.panels import printable
from agentenv_backends.cleanup import BACKENDS, clean_up

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import Console

    from agentenv_backends.cleanup import Swept


def add_cleanup_parser(chosen: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    parser: argparse.ArgumentParser = chosen.add_parser(
        "cleanup",
        help="remove what dead runs left behind: containers, processes, control groups, folders",
        description="Removes what runs that are no more left behind, and nothing of live ones. "
        "Exit status 1: something could not be removed, or a named backend not be asked.",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, action="append", help="only there (default: everywhere)"
    )
    parser.add_argument(
        "--images",
        action="store_true",
        help="also what the Docker engine keeps for later runs: prepared workspaces, and images with a Python added",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be removed, and leave it"
    )
    return parser


def run_cleanup(options: argparse.Namespace, console: Console) -> int:
    """Sweep, and print what was found. 1 when something stays that should not, else 0."""
    named = tuple(options.backend or ())
    swept = asyncio.run(clean_up(named, remove=not options.dry_run, images=options.images))
    show(swept, console, dry_run=options.dry_run)
    stays = any(not thing.removed for entry in swept for thing in entry.leftovers)
    unasked = any(entry.skipped and entry.backend in named for entry in swept)
    return 1 if unasked or (stays and not options.dry_run) else 0


def show(swept: Sequence[Swept], console: Console, *, dry_run: bool) -> None:
    """Print a row for each thing that was found, and a line for each backend that could not be asked."""
    if any(entry.leftovers for entry in swept):
        console.print(leftovers_table(swept, dry_run=dry_run))
    for entry in swept:
        if entry.skipped:
            console.print(f"{entry.backend}: skipped, {printable(entry.skipped)}", markup=False)
        elif not entry.leftovers:
            console.print(f"{entry.backend}: nothing was left behind", markup=False)


def leftovers_table(swept: Sequence[Swept], *, dry_run: bool) -> Table:
    """What was found, by whom it was left, and what became of it."""
    table = Table("backend", "what", "name", "left by", "now", title="Left behind by dead runs")
    table.title_justify = "left"
    for entry in swept:
        for thing in entry.leftovers:
            now = Text("removed", "green") if thing.removed else Text("stays", "bold red")
            if dry_run:
                now = Text("found", "yellow")
            cells = (entry.backend, thing.kind, thing.name, thing.owner)
            table.add_row(*(Text(printable(cell)) for cell in cells), now)
    return table
