"""Logging of the command line: warnings on stderr, ours in more detail when asked for; others stay quiet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rich.logging import RichHandler

from agentenv.run.panels import printable

if TYPE_CHECKING:
    from rich.console import Console

_OURS = ("agentenv", "agentenv_backends", "agentenv_tools", "agentenv_environments")


class _Printable(logging.Formatter):
    """Messages may quote what a model wrote: nothing in them may command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).splitlines())


def configure_logging(console: Console, *, verbose: bool) -> None:
    """Send log records to `console`. Replaces what an earlier call set up."""
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if isinstance(handler, RichHandler)]:
        root.removeHandler(earlier)
    handler = RichHandler(console=console, show_path=False, markup=False, highlighter=None)
    handler.setFormatter(_Printable("%(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)
