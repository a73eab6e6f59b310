"""Figures on a terminal and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from tests.benchmarks.figures import Goal, Section


def show_machine(console: Console, machine: Mapping[str, str]) -> None:
    """One line for each fact."""
    for name, value in machine.items():
        console.print(f"{name:>12}: {value}", markup=False, highlight=False)
    console.print()


def show(console: Console, section: Section) -> None:
    """A section as a table, and its goals below."""
    if section.error:
        console.print(f"{section.name}: {section.error}", style="red", markup=False)
        return
    columns = list(dict.fromkeys(name for row in section.rows for name in row.figures))
    table = Table(title=section.title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in section.rows:
        cells = (row.figures.get(name) for name in columns)
        table.add_row(Text(row.label), *("" if cell is None else number(cell) for cell in cells))
    console.print(table)
    for row in section.rows:
        if row.note:
            console.print(f"  {row.label}: {row.note}", style="dim", markup=False)
    for goal in section.goals:
        console.print(f"  {_sentence(goal)}", style="green" if goal.met else "yellow", markup=False)
    console.print()


def as_json(machine: Mapping[str, str], sections: Sequence[Section]) -> dict[str, Any]:
    """Everything, for other programs. Figures that do not exist are null."""
    return {
        "machine": dict(machine),
        "sections": [
            {
                **asdict(section),
                "goals": [{**asdict(goal), "met": goal.met} for goal in section.goals],
            }
            for section in sections
        ],
    }


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _sentence(goal: Goal) -> str:
    bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}"
    return f"{number(goal.value)} {goal.text}; goal: {bound}: {'met' if goal.met else 'NOT MET'}"
