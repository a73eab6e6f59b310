"""An event loop in a thread of its own."""

import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest

from agentenv.errors import NotStartedError
from agentenv.sinks.background import BackgroundLoop


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    made = BackgroundLoop("test")
    made.start()
    yield made
    made.stop()


def test_it_runs_coroutines_and_raises_what_they_raise(loop: BackgroundLoop):
    async def work(fail: bool) -> str:
        if fail:
            raise ValueError("broken")
        return threading.current_thread().name

    assert loop.run(work(fail=False)) == "test"
    with pytest.raises(ValueError, match="broken"):
        loop.run(work(fail=True))


def test_it_turns_between_calls(loop: BackgroundLoop):
    ticked = threading.Event()

    async def begin() -> asyncio.Task[None]:
        async def tick() -> None:
            await asyncio.sleep(0)
            ticked.set()

        return asyncio.create_task(tick())

    kept = loop.run(begin())
    assert ticked.wait(5)
    assert kept is not None


def test_an_interrupted_caller_waits_until_the_work_has_ended(loop: BackgroundLoop):
    cleaned: list[bool] = []
    caller = threading.main_thread().ident
    assert caller is not None

    async def work() -> None:
        try:
            signal.pthread_kill(caller, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        loop.run(work())
    assert cleaned == [True]


def test_a_loop_that_is_not_running_refuses_work():
    async def work() -> None:
        pass

    never = BackgroundLoop("never")
    never.stop()
    with pytest.raises(NotStartedError, match="never"):
        never.run(work())
