"""A sweep on a terminal: the table of its arms, and the difference of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from agentenv.evaluation.comparison import holm_adjusted
from agentenv.evaluation.statistics import LEVEL
from agentenv.evaluation.summary import ordered_k
from agentenv.run.panels import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.evaluation.comparison import PairedDifference
    from agentenv.evaluation.spec import Arm
    from agentenv.evaluation.statistics import Estimate
    from agentenv.evaluation.summary import ArmSummary

_CAUSES = 4


def sweep_tables(summaries: Sequence[ArmSummary], title: str) -> list[Table]:
    """What the arms scored, and what they used: two tables that fit a terminal of eighty columns."""
    return [_scores(summaries, title), _use(summaries)]


def _scores(summaries: Sequence[ArmSummary], title: str) -> Table:
    note = f"intervals of {LEVEL:.0%} over tasks; lost samples are in no score"
    table = Table(title=printable(title), title_justify="left", title_style="bold", caption=note)
    shown = _shown_k(summaries)
    most = max(shown, default=1)
    table.add_column("", overflow="fold")
    names = ["samples", "lost", "score", *(f"pass@{k}" for k in shown)]
    names += [f"pass^{most}"] if most > 1 else []
    for name in names:
        table.add_column(name, justify="right")
    labels = arm_labels([summary.arm for summary in summaries])
    for label, summary in zip(labels, summaries, strict=True):
        cells = [label, _done(summary), f"{summary.lost:,}", estimate(summary.score)]
        cells += [estimate(summary.pass_at.get(k)) for k in shown]
        cells += [estimate(summary.pass_hat.get(most))] if most > 1 else []
        table.add_row(*map(Text, cells))
    return table


def _use(summaries: Sequence[ArmSummary]) -> Table:
    table = Table()
    table.add_column("", overflow="fold")
    for name in ("tokens in/out", "cost", "p50", "p95", "tool errors", "tried again"):
        table.add_column(name, justify="right")
    labels = arm_labels([summary.arm for summary in summaries])
    for label, summary in zip(labels, summaries, strict=True):
        cells = [
            label,
            f"{_short(summary.input_tokens)}/{_short(summary.output_tokens)}",
            cost(summary.cost_usd, complete=summary.cost_complete),
            _seconds(summary.latency_p50_s),
            _seconds(summary.latency_p95_s),
            f"{summary.tool_errors:,}/{summary.tool_calls:,}",
            f"{summary.tried_again:,}",
        ]
        table.add_row(*map(Text, cells))
    return table


def arm_labels(arms: Sequence[Arm]) -> list[str]:
    """Names that tell arms apart: what is the same for all is left out, but for the model."""
    task_sets, settings = {arm.task_set for arm in arms}, {arm.settings for arm in arms}
    labels = []
    for arm in arms:
        parts = [arm.model]
        parts += [arm.settings] if len(settings) > 1 else []
        parts += [arm.task_set] if len(task_sets) > 1 else []
        labels.append(printable(" / ".join(parts)))
    return labels


def _shown_k(summaries: Sequence[ArmSummary]) -> list[int]:
    """The first and the last: a table has room for no more. Where rewards are 0 and 1, pass@1 is the score."""
    known = ordered_k(summaries)
    same = all(
        summary.score is None or summary.pass_at[1].value == summary.score.value
        for summary in summaries
    )
    return sorted({k for k in (known[:1] if not same else []) + known[-1:] if k > 1 or not same})


def _done(summary: ArmSummary) -> str:
    ended = f"{summary.ended:,}"
    return ended if summary.ended == summary.planned else f"{ended}/{summary.planned:,}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def lost_lines(summaries: Sequence[ArmSummary]) -> list[Text]:
    """Why samples have no reward."""
    lines = []
    for summary in summaries:
        if summary.causes:
            arm = summary.arm
            lines.append(Text(printable(f"lost by {arm.model} / {arm.settings} / {arm.task_set}:")))
        lines += [
            Text(f"{count:>6} x {printable(cause[:300])}", style="yellow")
            for cause, count in summary.causes[:_CAUSES]
        ]
    return lines


def difference_table(found: PairedDifference, first: str, second: str) -> Table:
    """Two runs on the same tasks."""
    table = Table(show_header=False, title="Paired by task", title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        (f"A: {printable(first)}", f"{found.first:.3f}"),
        (f"B: {printable(second)}", f"{found.second:.3f}"),
        ("B - A", f"{found.difference:+.3f}{_interval(found.low, found.high, sign=True)}"),
        ("p-value", "-" if found.p_value is None else f"{found.p_value:.4g} ({found.method})"),
        (
            "tasks",
            f"{found.tasks:,} in common: {found.better:,} better in B, {found.worse:,} worse",
        ),
        ("left out", f"{found.left_out:,} tasks with a score in only one of them"),
    ]
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def differences_table(found: Sequence[tuple[str, str, PairedDifference]]) -> Table:
    """Every two of several runs: how far the second is from the first, and what chance would bring."""
    note = "adjusted: for how many comparisons there are (Holm)"
    table = Table(title="Paired by task", title_justify="left", caption=note)
    table.add_column("B - A", overflow="fold")
    for name in ("difference", "p-value", "adjusted", "tasks"):
        table.add_column(name, justify="right")
    adjusted = holm_adjusted([difference.p_value for _, _, difference in found])
    for (first, second, difference), p in zip(found, adjusted, strict=True):
        cells = [
            f"{printable(second)} - {printable(first)}",
            f"{difference.difference:+.3f}{_interval(difference.low, difference.high, sign=True)}",
            _p_value(difference.p_value),
            _p_value(p),
            f"{difference.tasks:,}",
        ]
        table.add_row(*map(Text, cells))
    return table


def _p_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def estimate(value: Estimate | None) -> str:
    """As `0.625 [0.41, 0.81]`."""
    if value is None:
        return "-"
    return f"{value.value:.3f}{_interval(value.low, value.high)}"


def _interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    if low is None or high is None:
        return ""
    return f" [{low:+.3f}, {high:+.3f}]" if sign else f" [{low:.2f}, {high:.2f}]"


def cost(value: float | None, *, complete: bool) -> str:
    """In US dollars; `-` where nobody told, `>=` where a part is unknown."""
    if value is None:
        return "-"
    return f"{'' if complete else '>= '}${value:,.4f}"


def _short(tokens: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.1f}{unit}"
    return str(tokens)
