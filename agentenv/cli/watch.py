"""`--watch` of the commands that run something."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable

    from rich.console import Console

    from agentenv.env import AgentEnv


def add_watch_option(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--watch",
        action="store_true",
        help="serve a live page on this machine, on port 8080 or the next free one",
    )


def watch_announcer(console: Console) -> Callable[[str], None]:
    """Prints where the page is."""

    def announce(url: str) -> None:
        console.print(f"watch it at {url}", markup=False, highlight=False, soft_wrap=True)

    return announce


@asynccontextmanager
async def watching_env(env: AgentEnv[Any], console: Console, *, watch: bool) -> AsyncIterator[None]:
    """A page of an environment's rollouts while it collects, if there is to be one. Cancelling all is a Ctrl-C."""
    if not watch:
        yield
        return
    from agentenv.watch import WatchedEnvironments, watching  # noqa: PLC0415 - imports a server

    environments = WatchedEnvironments()
    async with watching(
        cancel_all=partial(signal.raise_signal, signal.SIGINT),
        slots=environments.slots,
        announce=watch_announcer(console),
    ) as page:
        environments.add(env, page)
        yield
