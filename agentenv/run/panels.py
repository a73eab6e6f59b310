"""How counts look: the live panel, the plain line, the final table.

Causes of failures may hold anything a model or a command wrote, so they are shown as plain text
with control characters escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

    from agentenv.run.counters import RunCounters, View

_SHOWN_CAUSES = 4
_TABLE_CAUSES = 12


def live_panel(view: View) -> Panel:
    """Everything at a glance, for a terminal."""
    counters = view.counters
    rows: list[RenderableType] = []
    if counters.target:
        rows.append(_bar(counters.groups_done, counters.target))
    rows.append(_grid(_cells(view)))
    rows.extend(
        Text(f"{count:>6} x {printable(cause)}", style="yellow", no_wrap=True, overflow="ellipsis")
        for cause, count in most(counters.failures, _SHOWN_CAUSES)
    )
    title = f"{_groups(counters)} groups"
    return Panel(Group(*rows), title=title, title_align="left", border_style="dim")


def _bar(done: int, target: int) -> Table:
    bar = Table.grid(expand=True)  # a bar of its own ends without a line break
    bar.add_row(ProgressBar(total=target, completed=done))
    return bar


def _cells(view: View) -> list[tuple[str, str]]:
    counters, pool = view.counters, view.pool
    return [
        ("solved", percent(counters.solved_share)),
        ("mean score", number(counters.mean_score)),
        ("last group", number(counters.last_group_mean)),
        ("tokens/s", f"{view.tokens_per_s:,.0f}"),
        ("tool calls/s", f"{view.calls_per_s:,.1f}"),
        ("slots in use", f"{pool.acquired_slots}/{pool.total_slots}" if pool else "-"),
        ("waiting for one", f"{pool.waiting}" if pool else "-"),
        ("groups under way", f"{counters.groups_running}"),
        ("trajectories", f"{counters.trajectories:,}"),
        ("failed", f"{sum(counters.failures.values()):,}"),
        ("groups dropped", f"{counters.groups_dropped}"),
        ("elapsed", duration(counters.elapsed_s)),
        *((printable(name), printable(value)) for name, value in counters.notes.items()),
    ]


def _grid(cells: list[tuple[str, str]], columns: int = 3) -> Table:
    grid = Table.grid(expand=True, padding=(0, 2))
    for _ in range(columns):
        grid.add_column(style="dim", justify="right", no_wrap=True)
        grid.add_column(style="bold", no_wrap=True, min_width=8)
    for start in range(0, len(cells), columns):
        grid.add_row(*(text for cell in cells[start : start + columns] for text in cell))
    return grid


def plain_line(view: View) -> str:
    """The same on one line, for logs."""
    counters, pool = view.counters, view.pool
    parts = [
        f"{_groups(counters)} groups",
        f"solved {percent(counters.solved_share)}",
        f"mean {number(counters.mean_score)}",
        f"{view.tokens_per_s:,.0f} tokens/s",
        f"{view.calls_per_s:,.1f} calls/s",
    ]
    if pool:
        parts.append(f"slots {pool.acquired_slots}/{pool.total_slots}, {pool.waiting} waiting")
    parts += [f"{printable(name)} {printable(value)}" for name, value in counters.notes.items()]
    if counters.failures:
        cause, count = most(counters.failures, 1)[0]
        parts.append(f"{sum(counters.failures.values())} failed ({count} x {printable(cause)})")
    return f"[{duration(counters.elapsed_s)}] " + " · ".join(parts)


def summary_table(counters: RunCounters, paths: Mapping[str, str] | None = None) -> Table:
    """The totals at the end of a run, and where its results are."""
    table = Table(show_header=False, title="Summary", title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    seconds = max(counters.elapsed_s, 1e-9)
    table.add_row("groups written", _groups(counters))
    table.add_row("with differing scores", _share(counters.groups_mixed, counters.groups_done))
    table.add_row("trajectories", _counts(counters.outcomes))
    table.add_row("mean score", number(counters.mean_score))
    table.add_row("solved", percent(counters.solved_share))
    table.add_row("ended by", _counts(counters.stops))
    table.add_row("sampled tokens", f"{counters.tokens:,} ({counters.tokens / seconds:,.0f}/s)")
    table.add_row("tool calls", f"{counters.tool_calls:,} ({counters.tool_calls / seconds:,.1f}/s)")
    table.add_row("time", f"{duration(seconds)} ({counters.groups_done / seconds:,.2f} groups/s)")
    table.add_row("groups tried again", f"{counters.groups_retried}")
    table.add_row("groups dropped", f"{counters.groups_dropped}")
    if counters.loop_lag_p99_s is not None:
        table.add_row("event-loop lag (p99)", f"{counters.loop_lag_p99_s * 1000:.1f} ms")
    _add_causes(table, "dropped because", counters.drops)
    _add_causes(table, "rollouts failed because", counters.failures)
    for name, path in (paths or {}).items():
        table.add_row(name, Text(printable(path), style="cyan"))
    return table


def _add_causes(table: Table, label: str, causes: Mapping[str, int]) -> None:
    for cause, count in most(causes, _TABLE_CAUSES):
        table.add_row(label, Text(f"{count} x {printable(cause)}", style="yellow"))
        label = ""


def most(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """The most frequent, first."""
    return sorted(dict(counts).items(), key=lambda entry: -entry[1])[:limit]


def printable(text: str) -> str:
    """`text` with everything a terminal could obey, or that hides itself, written as its escape."""
    return "".join(
        character if character.isprintable() else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def number(value: float | None) -> str:
    """A score; `-` when there is none."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share; `-` when there is none."""
    return "-" if value is None else f"{value:.0%}"


def duration(seconds: float) -> str:
    """As `1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _groups(counters: RunCounters) -> str:
    return f"{counters.groups_done}" + (f"/{counters.target}" if counters.target else "")


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "0"


def _counts(counts: Mapping[str, int]) -> Text:
    entries: Iterable[tuple[str, int]] = most(counts, 20)
    return Text(", ".join(f"{count} {printable(name)}" for name, count in entries) or "-")
