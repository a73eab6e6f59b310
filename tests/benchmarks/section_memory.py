"""What a trajectory and a slot weigh in the driver, as Python's own allocator counts it."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import TYPE_CHECKING, Any

from agentenv import AgentConfig, AgentEnvConfig
from agentenv.hooks import NullVerifier
from agentenv.runtime import EnvRuntime
from agentenv.task import Task
from agentenv.testing.tokenizers import tiny_tokenizer
from agentenv.tokens.renderer import load_renderer
from agentenv_tools.testing import NullBackend
from agentenv_tools.toolsets import build_registry
from tests.benchmarks.figures import Effort, Row, Section
from tests.benchmarks.local import local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.policy.base import ChatCompletion, Completion, SamplingParams

_SLOTS = 64
_INSTRUCTION = "Count the words of input.txt and write the number to answer.txt. " * 8
_BYTES = "bytes each"


class _ParkedPolicy:
    """Never answers: every rollout waits for its first reply."""

    returns_tokens = True
    takes_images = False

    def __init__(self) -> None:
        self.waiting = 0
        self.prompt_tokens = 0
        self.all_waiting = asyncio.Event()
        self.expected = 0

    async def start(self) -> None:
        """Nothing to start."""

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str
    ) -> Completion:
        """Wait until cancelled."""
        self.waiting += 1
        self.prompt_tokens = len(prompt_ids)
        if self.waiting == self.expected:
            self.all_waiting.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets that event")

    async def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams, *, trajectory_id: str
    ) -> ChatCompletion:
        """Not used."""
        raise NotImplementedError

    def raise_concurrency(self, requests: int) -> None:
        """No limit to raise."""

    async def close(self) -> None:
        """Nothing to close."""


async def run(effort: Effort) -> Section:
    """Rollouts that wait for the policy's first reply; slots that are held and wait for a call."""
    tracemalloc.start()
    try:
        trajectory = await _rollouts(effort.parked_rollouts)
        slot = await _slots(min(_SLOTS, 8 * max(effort.trajectories)))
    finally:
        tracemalloc.stop()
    return Section("memory", "Memory of the driver", (trajectory, slot))


async def _rollouts(count: int) -> Row:
    tokenizer, policy = tiny_tokenizer("qwen3"), _ParkedPolicy()
    config = AgentEnvConfig(renderer="qwen3", max_token_length=16_384)
    runtime = EnvRuntime(
        config,
        [],
        build_registry(),
        backend=NullBackend(),
        policy=policy,
        renderer=load_renderer(tokenizer, "qwen3"),
    )
    task = Task(instruction=_INSTRUCTION, item=None, agent=AgentConfig())
    await runtime.start()
    tasks: list[asyncio.Task[Any]] = []
    try:
        await _park(
            runtime, policy, task, tasks, 4
        )  # caches that are filled once are not the rollouts'
        before = _allocated()
        await _park(runtime, policy, task, tasks, count)
        each = (_allocated() - before) / count
    finally:
        for parked in tasks:
            parked.cancel()
        await asyncio.wait(tasks)
        await runtime.stop()
    note = (
        f"{count} rollouts waiting for their first reply, prompts of {policy.prompt_tokens} tokens"
    )
    return Row("idle trajectory", {_BYTES: each}, note)


async def _park(
    runtime: EnvRuntime,
    policy: _ParkedPolicy,
    task: Task,
    tasks: list[asyncio.Task[Any]],
    count: int,
) -> None:
    policy.expected = policy.waiting + count
    policy.all_waiting.clear()
    for number in range(count):
        name = f"rollout-{len(tasks)}-{number}"
        tasks.append(asyncio.create_task(runtime.run(task, NullVerifier(), trajectory_id=name)))
    async with asyncio.timeout(60):
        await policy.all_waiting.wait()


async def _slots(count: int) -> Row:
    async with local(count + 4) as run:
        for number in range(4):
            await run.shell(count + number, "true")
        before = _allocated()
        await run.warm_up(count)
        each = (_allocated() - before) / count
    return Row("slot", {_BYTES: each}, f"{count} held slots after a first call, executor included")


def _allocated() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
