"""Metrics to Weights & Biases: the extra `wandb`, and only where `use_wandb` is set.

Where they go (account, server, `offline`, `disabled`) is what wandb's own variables and settings say.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agentenv.errors import ConfigError
from agentenv.serve.metrics import Threaded

if TYPE_CHECKING:
    from collections.abc import Mapping


def require_wandb() -> None:
    """Raise `ConfigError` where the library is missing. Imports nothing."""
    if not _is_there():
        raise ConfigError(
            "env.use_wandb is true, but wandb is not installed: install the extra `wandb`, or set it to false "
            "(metrics are in metrics.jsonl either way)"
        )


def _is_there() -> bool:
    try:
        return find_spec("wandb") is not None
    except ValueError:  # something stands in its place that is no module
        return False


class WandbMetrics:
    """A run at Weights & Biases, begun with the first call. Everything it does happens in a thread."""

    def __init__(
        self, *, name: str, project: str | None, group: str | None, config: Mapping[str, Any]
    ) -> None:
        self._settings = {"name": name, "project": project, "group": group, "config": dict(config)}
        self._run: Any = None
        self._work = Threaded("wandb")
        self._work.submit(self._begin)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """See `MetricsSink`."""
        held = dict(metrics)
        self._work.submit(lambda: self._log(held, step))

    async def close(self) -> None:
        """See `MetricsSink`."""
        await self._work.close(self._finish)

    def _begin(self) -> None:
        self._run = import_module("wandb").init(**self._settings)

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._run is not None:
            self._run.log(dict(metrics), step=step)

    def _finish(self) -> None:
        if self._run is not None:
            self._run.finish()
