"""A sweep over trivial samples in a process of its own, and reading it: what `peer_inspect` does, done here.

    python -m tests.benchmarks.sweep_load sweep FOLDER SAMPLES CONCURRENCY [isolated | local]
    python -m tests.benchmarks.sweep_load write FOLDER SAMPLES
    python -m tests.benchmarks.sweep_load read FOLDER

Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv import AgentEnv, AgentEnvConfig, APIServerConfig, ToolCall
from agentenv.evaluation.runner import Sweep
from agentenv.evaluation.samples import SampleSpent, ended_sample
from agentenv.evaluation.schema import TaskEntry
from agentenv.evaluation.sources import EnvironmentSource, SampleResult
from agentenv.evaluation.spec import SampleKey, SweepConfig
from agentenv.evaluation.store import SweepStore
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.runtime import EnvRuntime
from agentenv.types import AgentResult, AgentStep, Usage
from agentenv_backends.config import LocalConfig
from agentenv_tools.testing import NullBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.policy.base import ChatCompletion, Completion, SamplingParams
    from agentenv.task import ExecTool
    from agentenv.types import Item
    from agentenv_backends.base import Backend

_AT_ONCE = 5_000


class _Answers:
    """A policy that says what is right, at once."""

    returns_tokens = False
    takes_images = False

    async def start(self) -> None:
        """Nothing to start."""

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str
    ) -> Completion:
        """Not used."""
        raise AssertionError("it returns no tokens")

    async def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams, *, trajectory_id: str
    ) -> ChatCompletion:
        """The answer."""
        from agentenv.policy.base import ChatCompletion

        return ChatCompletion("right", "stop", prompt_tokens=10, completion_tokens=1)

    def raise_concurrency(self, requests: int) -> None:
        """It has no limit."""

    async def close(self) -> None:
        """Nothing to close."""


class _Numbers(AgentEnv[AgentEnvConfig]):
    """Tasks are numbers; with a sandbox each begins with one command in it."""

    def __init__(self, backend: Backend, *, in_sandbox: bool) -> None:
        self.backend = backend
        self.in_sandbox = in_sandbox
        config = AgentEnvConfig(enabled_toolsets=["terminal"])
        super().__init__(config, [APIServerConfig(base_url="http://127.0.0.1:9/v1")])

    def build_runtime(self) -> EnvRuntime:
        """With a policy that no server stands behind."""
        return EnvRuntime(
            self.config, self.server_configs, self.tools, backend=self.backend, policy=_Answers()
        )

    async def setup_agent_env(self) -> None:
        """Begin with the first."""
        self.next = 0

    async def get_next_item(self) -> Item:
        """The next number."""
        self.next += 1
        return self.next

    def build_task(self, item: Item) -> str:
        """What the peer's samples say."""
        return f"task {item}"

    async def setup_trajectory_workspace(
        self, item: Item, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """The command."""
        if self.in_sandbox:
            done = await exec_tool(ToolCall("terminal", {"command": "true"}))
            assert done.success, done
        return {}

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        """By comparing."""
        return float(final_response == "right")


def _backend(slots: int, sandbox: str | None) -> Backend:
    """`local` is what the peer calls so: a folder and processes, nothing kept apart."""
    if sandbox is None:
        return NullBackend()
    if sandbox == "local":
        return LocalConfig(slots=slots, isolation="none", allow_network=True).build()
    return LocalConfig(slots=slots).build()


def _config(samples: int, concurrency: int) -> SweepConfig:
    values = {
        "tasks": {"numbers": {"environment": "numbers", "count": samples}},
        "models": {"mock": {}},
        "concurrency": concurrency,
    }
    return SweepConfig.model_validate(values)


async def sweep(
    folder: Path, samples: int, concurrency: int, sandbox: str | None
) -> dict[str, Any]:
    """Everything real but the policy, and the backend where there is no sandbox."""
    config = _config(samples, concurrency)
    began = time.perf_counter()
    store = await SweepStore.open(folder, config)

    def source(config: SweepConfig, arm: object) -> EnvironmentSource:
        return EnvironmentSource(
            lambda: _Numbers(_backend(concurrency, sandbox), in_sandbox=sandbox is not None),
            count=samples,
            concurrency=concurrency,
        )

    running = Sweep(config, store, source=source)
    await running.run()
    await store.close()
    seconds = time.perf_counter() - began
    assert running.counts.outcomes == {"scored": samples}, running.counts
    return {"seconds": seconds, "peak_bytes": _peak_bytes(), "samples": running.counts.ended}


async def write(folder: Path, samples: int) -> dict[str, Any]:
    """A sweep of many samples, written without being run."""
    config = _config(samples, 1)
    store = await SweepStore.open(folder, config)
    (arm,) = config.arms()
    number = await store.arm(arm)
    tasks = await store.tasks(
        arm.task_set, [TaskEntry(str(place), f"task {place}") for place in range(samples)]
    )
    result = SampleResult(_record(), Usage(10, 1))
    spent = SampleSpent()
    spent.add(result)

    def made(place: int) -> Any:
        key = SampleKey(arm, str(place), 0, 1)
        return lambda: ended_sample(key, (number, tasks[place]), result, spent, keep_tokens=False)

    for start in range(0, samples, _AT_ONCE):
        part = range(start, min(start + _AT_ONCE, samples))
        await asyncio.gather(*(store.add(made(place)) for place in part))
    await store.close()
    return {"samples": samples}


def _record() -> RolloutRecord:
    messages = ({"role": "user", "content": "task"}, {"role": "assistant", "content": "right"})
    agent = AgentResult(
        success=True,
        final_response="right",
        stop_reason=StopReason.FINAL_ANSWER,
        steps=(AgentStep(1, "right", usage=Usage(10, 1)),),
        messages=messages,
    )
    return RolloutRecord("trajectory", Outcome.SCORED, StopReason.FINAL_ANSWER, 1.0, agent)


def read(folder: Path) -> dict[str, Any]:
    """Open it and summarise every sample: scores with intervals, tokens, latencies."""
    from agentenv.evaluation.reader import SweepReader
    from agentenv.evaluation.summary import summarise

    began = time.perf_counter()
    with SweepReader(folder) as reader:
        (summary,) = summarise(reader)
    seconds = time.perf_counter() - began
    assert summary.score is not None
    return {"seconds": seconds, "samples": summary.ended, "mean": summary.score.value}


def _peak_bytes() -> int:
    """Of this program: `ru_maxrss` would count what its parent held when it was forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(words: list[str]) -> dict[str, Any]:
    """One order."""
    order, folder, *rest = words
    if order == "sweep":
        samples, concurrency, *sandbox = rest
        chosen = next(iter(sandbox), None)
        return asyncio.run(sweep(Path(folder), int(samples), int(concurrency), chosen))
    if order == "write":
        return asyncio.run(write(Path(folder), int(rest[0])))
    return read(Path(folder))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])) + "\n")
