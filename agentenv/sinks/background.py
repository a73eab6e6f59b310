"""An event loop in a thread of its own, for trainers that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from agentenv.errors import NotStartedError

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines for callers that wait. It turns between calls too: sandboxes need their leases renewed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Idempotent."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._turn, name=self._name, daemon=True)
            self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` and wait for it. An exception in the caller, such as Ctrl-C, cancels it and waits for its end."""
        if self._loop is None:
            work.close()
            raise NotStartedError(f"the loop of {self._name} is not started")
        loop, ended = self._loop, threading.Event()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(loop.create_task(work))
            tasks[0].add_done_callback(lambda _: ended.set())

        def cancel() -> None:
            if tasks:
                tasks[0].cancel()
            else:  # the caller was interrupted before it could hand the work over
                work.close()
                ended.set()

        try:
            loop.call_soon_threadsafe(begin)
            ended.wait()
        except BaseException:
            loop.call_soon_threadsafe(cancel)
            ended.wait()
            raise
        return tasks[0].result()

    def stop(self) -> None:
        """End the loop and its thread. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def _turn(self) -> None:
        assert self._loop is not None
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
