"""The demo from beginning to end: measure, train with three processes, measure again, draw."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import AsyncExitStack, closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from agentenv.rollout import finish
from agentenv.training.checkpoints import CheckpointStore
from agentenv.training.demo.curve import draw_curve
from agentenv.training.demo.display import LineDisplay, LiveDisplay, result_table
from agentenv.training.demo.evaluation import (
    EvaluationError,
    mean_gain,
    mean_score,
    task_scores,
)
from agentenv.training.demo.processes import DemoProcess, free_port, listens
from agentenv.training.service import CHECKPOINTS, STEPS_FILE, read_steps
from agentenv.training.settings import TrainerConfig

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from agentenv.env import AgentEnv
    from agentenv.evaluation.statistics import Estimate
    from agentenv.training.demo.config import DemoConfig
    from agentenv.training.demo.display import Display

logger = logging.getLogger(__name__)

CURVE = "reward.png"
RESULT = "result.json"
_BASELINE = "before.json"
_REFRESH_S = 0.5


class MakesEnvironments(Protocol):
    """Builds the environment to be measured, not set up, with the policy of a folder."""

    def __call__(self, model: str, env: dict[str, Any]) -> AgentEnv[Any]:
        """`env` are settings laid over those of the demo."""
        ...


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a demo is given beside its configuration."""

    folder: Path
    """Everything it writes; one that was begun before is gone on with."""
    model: str
    """Folder of the model to begin with."""
    plain: bool = False
    """Lines instead of a panel, also on a terminal."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of it."""

    before: Estimate
    after: Estimate
    gain: Estimate
    training_s: float
    reached: bool
    """Whether the gain is as large as was asked for."""


class Demo:
    """One demo. Whatever ends it, nothing it started is left running."""

    def __init__(
        self,
        config: DemoConfig,
        options: DemoOptions,
        make_env: MakesEnvironments,
        console: Console,
    ) -> None:
        self._config = config
        self._options = options
        self._make_env = make_env
        self._console = console
        self._folder = options.folder

    async def run(self) -> DemoResult:
        """Raises `DemoProcessError`, `EvaluationError`, or what the environment raises at its start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        before = await self._before()
        training_s = await self._train()
        self._say("measuring the trained policy on held-out tasks")
        after = await self._measure(str(self._trained()))
        return self._conclude(before, after, training_s)

    # ---- measuring ----

    async def _before(self) -> list[list[float]]:
        """Measured once: a demo that is gone on with remembers."""
        path = self._folder / _BASELINE
        if path.exists():
            scores: list[list[float]] = json.loads(path.read_text(encoding="utf-8"))
            return scores
        self._say("measuring the policy as it is on held-out tasks")
        scores = await self._measure(self._options.model)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(scores), encoding="utf-8")
        draft.replace(path)
        self._say(f"success before: {100 * mean_score(scores).value:.1f} %")
        return scores

    async def _measure(self, model: str) -> list[list[float]]:
        config = self._config.evaluation
        env = self._make_env(
            model, {"group_size": config.samples, "seed": config.seed, **config.env}
        )
        try:
            async with asyncio.timeout(config.timeout_s) as deadline:
                return await task_scores(env, tasks=config.tasks, workers=config.workers)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise EvaluationError(
                f"{config.tasks} tasks were not done within evaluation.timeout_s={config.timeout_s:g}"
            ) from error

    def _trained(self) -> Path:
        store = CheckpointStore(self._folder / CHECKPOINTS, model_path=self._folder)
        latest = store.latest()
        assert latest is not None, "a trainer that ended in order has written a checkpoint"
        return latest.path

    # ---- training ----

    async def _train(self) -> float:
        """Seconds it took, the start of the processes included."""
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            ports = free_port(), free_port()
            server, trainer, environment = await self._start(stack, *ports)
            with closing(self._display()) as display:
                watching = asyncio.create_task(self._show(display, started))
                try:
                    async with asyncio.timeout(self._config.train_timeout_s):
                        await _until_trained(trainer, server, environment)
                except TimeoutError:
                    raise trainer.failure(
                        f"is not done after train_timeout_s={self._config.train_timeout_s:g}"
                    ) from None
                finally:
                    watching.cancel()
                    await asyncio.wait({watching})
                    display.update(self._steps(), time.monotonic() - started)
        return time.monotonic() - started

    async def _start(
        self, stack: AsyncExitStack, server_port: int, generation_port: int
    ) -> tuple[DemoProcess, DemoProcess, DemoProcess]:
        """The three processes, each answering before the next begins. They end in reverse order."""
        timeout_s = self._config.start_timeout_s
        server = await self._launch(stack, "trajectory server", self._server_command(server_port))
        await server.ready(lambda: listens(server_port), timeout_s)
        trainer = await self._launch(
            stack, "trainer", self._trainer_command(server_port, generation_port)
        )
        await trainer.ready(lambda: listens(generation_port), timeout_s)
        environment = await self._launch(
            stack, "environment", self._environment_command(server_port, generation_port)
        )
        self._say(
            f"training: {self._config.training.steps} steps; logs and checkpoints in {self._folder}"
        )
        return server, trainer, environment

    async def _launch(self, stack: AsyncExitStack, name: str, command: list[str]) -> DemoProcess:
        log = self._folder / f"{name.replace(' ', '-')}.log"
        process = await DemoProcess.start(name, command, log)
        stack.push_async_callback(lambda: finish(process.stop()))
        return process

    def _server_command(self, port: int) -> list[str]:
        data, staleness = str(self._folder / "api"), self._config.max_staleness
        command = ["-m", "agentenv", "api", "--port", str(port), "--data", data]
        return command if staleness is None else [*command, "--max-staleness", str(staleness)]

    def _trainer_command(self, server_port: int, generation_port: int) -> list[str]:
        config = TrainerConfig(
            model=self._options.model,
            folder=self._folder,
            server_url=f"http://127.0.0.1:{server_port}",
            port=generation_port,
            max_token_length=self._max_token_length(),
            grpo=self._config.training,
        )
        path = self._folder / "trainer.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        return ["-m", "agentenv.training", str(path)]

    def _environment_command(self, server_port: int, generation_port: int) -> list[str]:
        url = f"http://127.0.0.1:{generation_port}/v1"
        settings = {
            "environment": self._config.environment,
            "env": {
                "rollout_server_url": f"http://127.0.0.1:{server_port}",
                "total_steps": self._config.training.steps,
                **self._config.env,
            },
            "openai": {
                "server_type": "vllm",
                "api": "generate",
                "base_url": url,
                "model_name": "default",
            },
        }
        path = self._folder / "environment.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        own = str(self._folder / "environment")
        return ["-m", "agentenv", "serve", str(path), "--run-dir", own, "--plain"]

    def _max_token_length(self) -> int:
        env = self._make_env(self._options.model, {})
        length: int = env.config.max_token_length
        return length

    # ---- showing ----

    def _display(self) -> Display:
        live = self._console.is_terminal and not self._options.plain
        kind = LiveDisplay if live else LineDisplay
        return kind(self._console, self._config.training.steps)

    async def _show(self, display: Display, started: float) -> None:
        while True:
            display.update(self._steps(), time.monotonic() - started)
            await asyncio.sleep(_REFRESH_S)

    def _steps(self) -> list[dict[str, Any]]:
        return read_steps(self._folder / STEPS_FILE)

    def _conclude(
        self, before: list[list[float]], after: list[list[float]], training_s: float
    ) -> DemoResult:
        gain, target = mean_gain(before, after), self._config.evaluation.target_gain
        result = DemoResult(
            before=mean_score(before),
            after=mean_score(after),
            gain=gain,
            training_s=training_s,
            reached=target is None or gain.value >= target,
        )
        curve = self._folder / CURVE
        draw_curve(self._steps(), curve, before=result.before, after=result.after)
        text = json.dumps({**asdict(result), "scores": {"before": before, "after": after}})
        (self._folder / RESULT).write_text(text, encoding="utf-8")
        count = sum(map(len, after))
        self._console.print(result_table(result.before, result.after, gain, trajectories=count))
        self._say(f"trained in {training_s:.0f} s; curve: {curve}; model: {self._trained()}")
        return result

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


async def _until_trained(
    trainer: DemoProcess, server: DemoProcess, environment: DemoProcess
) -> None:
    """Until the trainer is done. Raises `DemoProcessError` as soon as any of the three fails.

    The environment may be done before: it stops by itself when the last batch was handed out.
    """
    running = {asyncio.create_task(each.wait()): each for each in (trainer, server, environment)}
    try:
        while any(each is trainer for each in running.values()):
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for each in [running.pop(task) for task in done]:
                if each.status != 0 or each is server:
                    raise each.failure("ended before training was done")
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
