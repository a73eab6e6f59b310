"""What the demo shows while it trains: a panel on a terminal, lines elsewhere; and the table at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agentenv.training.demo.curve import running_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from agentenv.evaluation.statistics import Estimate

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 60
_WINDOW = 7
Step = dict[str, Any]


class Display(Protocol):
    """Something that shows how training goes, until it is closed."""

    def update(self, steps: Sequence[Step], seconds: float) -> None:
        """All steps so far, and how long training has taken."""
        ...

    def close(self) -> None:
        """Leave the terminal as it is."""
        ...


class LiveDisplay:
    """A panel, redrawn in place."""

    def __init__(self, console: Console, target: int) -> None:
        self._target = target
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def update(self, steps: Sequence[Step], seconds: float) -> None:
        """See `Display.update`."""
        self._live.update(panel(steps, self._target, seconds), refresh=True)

    def close(self) -> None:
        """See `Display.close`."""
        self._live.stop()


class LineDisplay:
    """A line for each step."""

    def __init__(self, console: Console, target: int) -> None:
        self._console = console
        self._target = target
        self._shown = 0

    def update(self, steps: Sequence[Step], seconds: float) -> None:
        """See `Display.update`."""
        for at in range(self._shown, len(steps)):
            text = line(steps[: at + 1], self._target, seconds)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._shown = len(steps)

    def close(self) -> None:
        """See `Display.close`. There is nothing to do."""


def line(steps: Sequence[Step], target: int, seconds: float) -> str:
    """The last step in one line."""
    last = steps[-1]
    stats = last["stats"]
    return (
        f"step {last['step']:3d}/{target}  reward {last['mean_score']:.3f} "
        f"(mean of {_WINDOW}: {running_mean(_rewards(steps), _WINDOW)[-1]:.3f})  "
        f"rows {stats['rows']}  ratio {stats['mean_ratio']:.3f}  clipped {100 * stats['clipped_share']:.1f} %  "
        f"{_age(last)}waited {last['wait_s']:.1f} s, learned {stats['seconds']:.1f} s, {seconds:.0f} s in all"
    )


def panel(steps: Sequence[Step], target: int, seconds: float) -> Panel:
    """All steps as a sparkline over a progress bar."""
    if not steps:
        return Panel(Text(f"waiting for the first batch, {seconds:.0f} s"), title="training")
    means = running_mean(_rewards(steps), _WINDOW)
    bar = ProgressBar(total=target, completed=steps[-1]["step"], width=_SHOWN)
    text = Text.assemble(
        ("reward ", "bold"), (sparkline(means[-_SHOWN:]), "cyan"), f"  {means[-1]:.3f}"
    )
    return Panel(Group(bar, text, Text(line(steps, target, seconds))), title="training")


def sparkline(values: Sequence[float]) -> str:
    """Values from 0 to 1 as a row of bars."""
    top = len(_BARS) - 1
    return "".join(_BARS[round(min(1.0, max(0.0, value)) * top)] for value in values)


def result_table(before: Estimate, after: Estimate, gain: Estimate, *, trajectories: int) -> Table:
    """Before and after, in per cent, with intervals of 95 % where there are any."""
    table = Table(title=f"success on held-out tasks, {trajectories} trajectories each")
    for heading in ("", "success", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, each in (("before", before), ("after", after), ("gain, points", gain)):
        unit = "" if each is gain else " %"
        table.add_row(name, f"{100 * each.value:.1f}{unit}", _interval(each, unit))
    return table


def _interval(estimate: Estimate, unit: str) -> str:
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}{unit}"


def _rewards(steps: Sequence[Step]) -> list[float]:
    return [step["mean_score"] for step in steps]


def _age(step: Step) -> str:
    oldest = step.get("oldest_version")
    return "" if oldest is None else f"oldest weights {step['step'] - 1 - oldest} back  "
