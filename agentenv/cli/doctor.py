"""`agentenv doctor`: which protections of the default backend hold on this machine, as found by trying, and which of
the other backends could be used from here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from agentenv.run.panels import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rich.console import Console

    from agentenv_backends.doctor import Protection

_OTHERS = (
    "Containers of a Docker engine, as it describes itself",
    "Allocations of a Nomad cluster",
    "Sandboxes of Modal",
)
_STYLES = {"yes": "green", "partly": "yellow", "no": "bold red"}


def run_doctor(console: Console) -> int:
    """Try every protection and print what was found. 1 when no sandbox can be opened here at all, else 0."""
    from agentenv_backends import doctor  # noqa: PLC0415 - imports backends

    protections, *others = asyncio.run(
        _examine(doctor.examine, doctor.examine_engine, doctor.examine_nomad, doctor.examine_modal)
    )
    console.print(protections_table(protections))
    for found, title in zip(others, _OTHERS, strict=True):
        console.print(protections_table(found, title=title))
    usable = can_run(protections)
    missing = sum(entry.in_force != "yes" for entry in protections)
    if not usable:
        console.print("The local backend cannot run here.", style="bold red")
    elif missing:
        console.print(
            f"The local backend runs here, without {missing} of {len(protections)} protections."
        )
    else:
        console.print("The local backend runs here, with every protection.", style="green")
    return 0 if usable else 1


async def _examine(*parts: Callable[[], Awaitable[list[Protection]]]) -> list[list[Protection]]:
    return [await part() for part in parts]


def can_run(protections: Sequence[Protection]) -> bool:
    """Whether a slot could be opened: where it could not, that is the only thing found."""
    return len(protections) != 1 or protections[0].in_force != "no"


def protections_table(
    protections: Sequence[Protection], title: str = "Sandboxes on this machine"
) -> Table:
    """One row for each protection."""
    table = Table(
        "protection",
        "in force",
        "how, or what to do",
        title=title,
        title_justify="left",
    )
    for entry in protections:
        shown = Text(printable(entry.means))
        if entry.way_out and entry.in_force != "yes":
            shown.append(f"\n{printable(entry.way_out)}", style="yellow")
        style = _STYLES.get(str(entry.in_force), "")
        table.add_row(Text(printable(entry.name)), Text(str(entry.in_force), style=style), shown)
    return table
