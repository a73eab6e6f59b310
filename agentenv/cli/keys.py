"""Single keys from the terminal while an event loop runs."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agentenv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def pressed_keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call `on_key` with each key that is pressed inside the block; the terminal is as before after it.

    Call on the event loop. Raises `ConfigError` when standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError("keys are read from a terminal, and standard input is none")
    import termios  # noqa: PLC0415 - not on every system
    import tty  # noqa: PLC0415

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        for key in os.read(descriptor, 64).decode("utf-8", "replace"):
            on_key(key)

    tty.setcbreak(descriptor, termios.TCSANOW)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
