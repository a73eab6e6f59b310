"""Watching a run: a live display on a terminal, plain lines elsewhere, or nothing.

A run tells its progress what happened, which only counts; a thread of the display looks at the
counts now and then. So a display costs the run microseconds, and a terminal that blocks delays
nothing but itself.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self

from rich.live import Live

from agentenv.run.counters import Rates, RunCounters, View
from agentenv.run.panels import live_panel, plain_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from rich.console import Console
    from rich.panel import Panel

    from agentenv.rollout import RolloutRecord
    from agentenv_backends.base import PoolStats

logger = logging.getLogger(__name__)

LIVE_INTERVAL_S = 0.25
PLAIN_INTERVAL_S = 5.0
_JOIN_S = 2.0


class Progress(Protocol):
    """What a run tells. Called on the event loop; returns at once."""

    def started(self, pool_stats: Callable[[], PoolStats]) -> None:
        """The backend and the policy are up; `pool_stats` may be asked from any thread."""
        ...

    def group_started(self) -> None:
        """A group is under way. Either `group_done` or `group_failed` follows, or the run ends."""
        ...

    def group_done(self, scores: Sequence[float]) -> None:
        """It is written."""
        ...

    def group_failed(self, cause: str, *, dropped: bool) -> None:
        """It is not: its item will be tried again, or is `dropped`."""
        ...

    def rollout_ended(self, record: RolloutRecord) -> None:
        """A rollout ended, in whatever way, retried ones included."""
        ...

    def noted(self, values: Mapping[str, str]) -> None:
        """What else to show, by name, from now on."""
        ...

    def ended(self, *, loop_lag_p99_s: float) -> None:
        """No more groups will come."""
        ...


class QuietProgress:
    """Counts and shows nothing. The displays build on it."""

    def __init__(self, target: int | None = None) -> None:
        self.counters = RunCounters(target=target)
        self._pool_stats: Callable[[], PoolStats] | None = None

    def started(self, pool_stats: Callable[[], PoolStats]) -> None:
        """The backend and the policy are up."""
        self._pool_stats = pool_stats
        self.counters.started_at = time.monotonic()

    def group_started(self) -> None:
        """A group is under way."""
        self.counters.groups_running += 1

    def group_done(self, scores: Sequence[float]) -> None:
        """A group is written."""
        self.counters.group_done(scores)

    def group_failed(self, cause: str, *, dropped: bool) -> None:
        """A group is not written."""
        self.counters.group_failed(cause, dropped=dropped)

    def rollout_ended(self, record: RolloutRecord) -> None:
        """A rollout ended."""
        self.counters.rollout_ended(record)

    def noted(self, values: Mapping[str, str]) -> None:
        """Something else to show."""
        self.counters.notes = dict(values)

    def ended(self, *, loop_lag_p99_s: float) -> None:
        """No more groups will come."""
        self.counters.ended_at = time.monotonic()
        self.counters.loop_lag_p99_s = loop_lag_p99_s
        self._pool_stats = None


class _Display(QuietProgress):
    """A thread that shows the counts every `interval_s` while the context is open, and once at its
    end.
    """

    def __init__(self, console: Console, target: int | None, *, interval_s: float) -> None:
        super().__init__(target)
        self._console = console
        self._interval_s = interval_s
        self._rates = Rates()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join(_JOIN_S)  # a terminal that blocks keeps its thread, not the run

    def _show(self) -> None:
        raise NotImplementedError

    def _view(self) -> View:
        return View(self.counters, *self._rates.update(self.counters), self._pool())

    def _pool(self) -> PoolStats | None:
        try:
            return self._pool_stats() if self._pool_stats else None
        except Exception:  # noqa: BLE001 - the pool changes under this thread; a display may miss a look at it
            return None


class LiveProgress(_Display):
    """A panel on a terminal, redrawn in place."""

    def __init__(
        self, console: Console, target: int | None = None, *, interval_s: float = LIVE_INTERVAL_S
    ) -> None:
        super().__init__(console, target, interval_s=interval_s)

    def _show(self) -> None:
        with Live(console=self._console, auto_refresh=False, get_renderable=self._panel) as live:
            while not self._closing.wait(self._interval_s):
                live.refresh()

    def _panel(self) -> Panel:
        return live_panel(self._view())


class PlainProgress(_Display):
    """A line every few seconds, and only when something changed."""

    def __init__(
        self, console: Console, target: int | None = None, *, interval_s: float = PLAIN_INTERVAL_S
    ) -> None:
        super().__init__(console, target, interval_s=interval_s)

    def _show(self) -> None:
        shown = -1
        while not self._closing.wait(self._interval_s):
            shown = self._line(shown)
        self._line(shown)

    def _line(self, shown: int) -> int:
        counted = self.counters.trajectories + self.counters.groups_running
        if counted != shown:
            self._console.print(
                plain_line(self._view()), markup=False, highlight=False, soft_wrap=True
            )
        return counted


def open_progress(console: Console, target: int | None) -> LiveProgress | PlainProgress:
    """The display that fits the console. A context manager."""
    return (LiveProgress if console.is_terminal else PlainProgress)(console, target)
