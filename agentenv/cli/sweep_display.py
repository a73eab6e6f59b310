"""Watching a sweep: a bar on a terminal, lines elsewhere. A thread looks at counts that the sweep only writes."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agentenv.run.panels import duration, printable
from agentenv.run.progress import LIVE_INTERVAL_S, PLAIN_INTERVAL_S

if TYPE_CHECKING:
    from rich.console import Console

    from agentenv.evaluation.runner import SweepCounts

_JOIN_S = 2.0


class SweepDisplay:
    """Shows counts while the context is open, and once at its end. A terminal that blocks delays nothing but itself."""

    def __init__(self, console: Console, counts: SweepCounts, *, plain: bool = False) -> None:
        self._console = console
        self._counts = counts
        self._started = time.monotonic()
        self._closing = threading.Event()
        show = self._lines if plain or not console.is_terminal else self._live
        self._thread = threading.Thread(target=show, name="sweep-display", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._thread.join(_JOIN_S)

    def _live(self) -> None:
        with Live(console=self._console, auto_refresh=False, get_renderable=self._bar) as live:
            while not self._closing.wait(LIVE_INTERVAL_S):
                live.refresh()

    def _lines(self) -> None:
        shown = -1
        while not self._closing.wait(PLAIN_INTERVAL_S):
            shown = self._line(shown)
        self._line(shown)

    def _line(self, shown: int) -> int:
        counts = self._counts
        if counts.ended != shown:
            self._console.print(self._text(), markup=False, highlight=False, soft_wrap=True)
        return counts.ended

    def _bar(self) -> Table:
        counts, bar = self._counts, Table.grid(expand=True)
        done = counts.found + counts.ended
        bar.add_row(ProgressBar(total=max(1, counts.planned), completed=done))
        bar.add_row(Text(self._text(), no_wrap=True, overflow="ellipsis"))
        return bar

    def _text(self) -> str:
        counts = self._counts
        seconds = time.monotonic() - self._started
        lost = sum(n for outcome, n in dict(counts.outcomes).items() if outcome.endswith("failed"))
        lost -= counts.outcomes.get("agent_failed", 0)
        parts = [
            f"{counts.found + counts.ended:,}/{counts.planned:,} samples",
            f"{counts.under_way} under way",
            f"{counts.ended / max(seconds, 1e-9):,.1f}/s",
            f"{counts.tokens:,} tokens",
        ]
        parts += [f"${counts.cost_usd:,.2f}"] if counts.cost_usd else []
        parts += [f"{lost:,} lost"] if lost else []
        parts += [f"{counts.tries_again:,} tried again"] if counts.tries_again else []
        parts.append(printable(counts.stopped or counts.arm))
        return f"[{duration(seconds)}] " + " · ".join(parts)
