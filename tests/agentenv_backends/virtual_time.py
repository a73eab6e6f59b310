"""Run a test in a loop whose clock jumps: nothing it waits for takes time."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from agentenv_backends.testing import run_in_virtual_time


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_in_virtual_time(test(*args, **kwargs))

    return run
