"""A `serve` under way against a server in memory, for tests of what becomes of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agentenv import Item
from agentenv.run.directory import RunDirectory
from agentenv.run.progress import QuietProgress
from agentenv.serve import serve
from agentenv.testing import FakeLink
from tests.agentenv.fake_env import EchoEnv, make_env
from tests.waiting import WITHIN_S


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.002)


@dataclass
class Running:
    """A `serve` under way."""

    env: EchoEnv
    link: FakeLink
    path: Path
    progress: QuietProgress = field(default_factory=QuietProgress)
    totals: dict[str, Any] = field(default_factory=dict)
    handle_signals: bool = False
    _task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None]:
        self._task = self._task or asyncio.create_task(self.run())
        return self._task

    async def run(self) -> None:
        directory = await RunDirectory.open(self.path, extend=True)
        try:
            self.totals = await serve(
                self.env,
                self.link,
                directory,
                progress=self.progress,
                handle_signals=self.handle_signals,
                poll_s=0.005,
            )
        finally:
            await directory.close()

    @property
    def items(self) -> list[str]:
        return [f"{group.group_id}" for group in self.link.groups]


EnvT = TypeVar("EnvT", bound="MixedEnv")


class MixedEnv(EchoEnv):
    """Its groups have differing scores, and it knows which items it gave."""

    def build_task(self, item: Item) -> str:
        return f"task {item}"

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        self.scored = getattr(self, "scored", 0) + 1
        return float(self.scored)


def made(env_cls: type[EnvT], **config: Any) -> EnvT:
    values = {"group_size": 2, "total_steps": 1000, "max_num_workers": 2, **config}
    env = make_env(lambda request: "right", env_cls=env_cls, **values)
    assert isinstance(env, env_cls)
    return env


def mixed(**config: Any) -> MixedEnv:
    return made(MixedEnv, **config)


@asynccontextmanager
async def serving(
    env: EchoEnv, link: FakeLink, path: Path, *, handle_signals: bool = False
) -> AsyncIterator[Running]:
    running = Running(env, link, path, handle_signals=handle_signals)
    assert not running.task.done()
    try:
        yield running
    finally:
        running.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running.task
    assert env.runtime.backend.stats().hosts == 0


async def seen(link: FakeLink) -> None:
    """Wait until the environment has acted on how things stand now."""
    looks = link.looks
    await until(lambda: link.looks > looks + 5)


async def fill(link: FakeLink) -> None:
    await until(link.train)
