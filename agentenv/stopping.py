"""Ending a run by signals: the first SIGINT or SIGTERM asks it to stop, the second ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

from agentenv.errors import AgentEnvError
from agentenv.rollout import finish

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator

STOP_GRACE_S = 2.5
"""After the first Ctrl-C, how long groups under way may go on. A run promises to end within ten seconds: the rest is
for giving back slots (`runtime.RELEASE_PATIENCE_S`) and for ending hosts, also those that do not answer.
"""


class StopRequests:
    """What was asked of a run so far. `on_stop` is called once, on the event loop."""

    def __init__(self) -> None:
        self.on_stop: Callable[[], None] | None = None
        """How to stop gracefully. While it is None there is nothing to finish, so the first request ends the run."""
        self.stopping = False
        self.made = False
        """Whether anything was asked at all."""
        self._abort = asyncio.Event()

    def request(self) -> None:
        """First call: stop gracefully. Second call: end now."""
        self.made = True
        if self.stopping or self.on_stop is None:
            self._abort.set()
            return
        self.stopping = True
        self.on_stop()

    @contextlib.contextmanager
    def from_signals(self) -> Iterator[None]:
        """Route SIGINT and SIGTERM here inside the block. Only possible in the main thread."""
        loop = asyncio.get_running_loop()
        installed: list[signal.Signals] = []
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                    loop.add_signal_handler(number, self.request)
                    installed.append(number)
            yield
        finally:
            for number in installed:
                loop.remove_signal_handler(number)

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`; if the run is to end now, cancel it and await its teardown. Raises what it raises."""
        main = asyncio.ensure_future(work)
        abort = asyncio.ensure_future(self._abort.wait())
        try:
            await asyncio.wait({main, abort}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            abort.cancel()
            if not main.done():
                main.cancel()
                await finish(settled(main))
        if not main.cancelled():
            main.result()


def cancelled_from_outside() -> bool:
    """Whether the current task was cancelled, and not only awaited something that was."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextlib.contextmanager
def failing_when_cancelled_inside(what: str) -> Iterator[None]:
    """Raise `AgentEnvError` where `what`, code of the environment's, awaited something that was cancelled.

    Passed on as it is, that would end the task around it as if somebody had asked for its end.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        if cancelled_from_outside():
            raise
        raise AgentEnvError(f"{what} awaited something that was cancelled") from error


async def settled(task: asyncio.Future[Any]) -> None:
    """Wait until a task is done, in whatever way."""
    await asyncio.wait({task})


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they are done."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def side_by_side(main: Coroutine[Any, Any, None], *others: Coroutine[Any, Any, None]) -> None:
    """Await `main` while the others run, which have no end of their own; then cancel them.

    The first that fails ends them all, and is raised; `AgentEnvError` where one was cancelled that nobody cancelled.
    """
    tasks = [asyncio.ensure_future(work) for work in (main, *others)]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await finish(_all_settled(tasks))
    for task in tasks:
        if not task.cancelled():
            task.result()
    if any(task.cancelled() for task in ended):
        raise AgentEnvError("something that was awaited was cancelled, by nobody who ends this run")


async def _all_settled(tasks: Iterable[asyncio.Future[None]]) -> None:
    await asyncio.wait(set(tasks))
