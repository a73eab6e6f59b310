"""A rollout function for TRL's `GRPOTrainer`: its model plays the environment, and learns from exact tokens.

    with TrlRollouts(env) as rollouts:
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            args=GRPOConfig(num_generations=env.config.group_size, ...),
            train_dataset=rollouts.dataset(256),
            rollout_func=rollouts,
            reward_funcs=rollouts.reward,
        )
        trainer.train()

Needs the extra `trl`. What TRL honours and what is refused, because TRL would silently get it wrong, is told at
`TrlRollouts`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Self

import torch

from agentenv.errors import ConfigError, NotStartedError, SinkError
from agentenv.policy.transformers_policy import TransformersPolicy
from agentenv.sinks.background import BackgroundLoop
from agentenv.sinks.rows import completion_rows, hole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from agentenv.env import AgentEnv
    from agentenv.policy.base import ChatCompletion, Completion, SamplingParams
    from agentenv.sinks.rows import CompletionRow
    from agentenv.types import Item

logger = logging.getLogger(__name__)

TESTED_VERSIONS = ((1, 16), (2, 0))
"""TRL from the first up to the second. Rollout functions are experimental there; older versions ignore `env_mask`."""
_REWARD = "agentenv_reward"


class TrainerPolicy:
    """A `PolicyClient` whose model a trainer lends it for as long as rollouts run, and changes in between."""

    returns_tokens = True
    takes_images = False

    def __init__(self, *, max_batch_size: int = 64) -> None:
        self._max_batch_size = max_batch_size
        self._lent: TransformersPolicy | None = None

    @asynccontextmanager
    async def lent(self, model: Any, policy_version: str) -> AsyncIterator[None]:
        """Sample from `model`, as it is now, inside the block. It is in evaluation mode meanwhile."""
        was_training = model.training
        policy = TransformersPolicy(
            model.eval,
            max_batch_size=self._max_batch_size,
            torch_threads=torch.get_num_threads(),
            policy_version=policy_version,
        )
        try:
            await policy.start()
            self._lent = policy
            yield
        finally:
            self._lent = None
            await policy.close()
            model.train(was_training)

    async def start(self) -> None:
        """Nothing to do: the model comes later."""

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str
    ) -> Completion:
        """See `PolicyClient.generate`. Raises `NotStartedError` when no model is lent."""
        return await self._policy().generate(prompt_ids, params, trajectory_id=trajectory_id)

    async def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams, *, trajectory_id: str
    ) -> ChatCompletion:
        """See `PolicyClient.chat`."""
        return await self._policy().chat(messages, params, trajectory_id=trajectory_id)

    def raise_concurrency(self, requests: int) -> None:
        """Does nothing: requests beyond the batch wait their turn."""

    async def close(self) -> None:
        """Nothing to do: what is lent is given back at the end of its block."""

    def _policy(self) -> TransformersPolicy:
        if self._lent is None:
            raise NotStartedError("the trainer's model is lent only while it asks for rollouts")
        return self._lent


class TrlRollouts:
    """Plays an environment for a `GRPOTrainer`, with the trainer's own model in this process.

    TRL gets the ids the policy sampled, their log-probs, a mask of what tools wrote (`env_mask`, which it honours in
    the loss while attending to those tokens), and the environment's reward. It computes advantages itself; in this
    mode it takes the policy to be the one it trains, so it uses the log-probs only for its off-policy mask.

    Raised as `ConfigError` or `SinkError`: a TRL version that was not tried, several processes, `use_vllm`, `tools` or
    an `environment_factory` beside it, a temperature or group size that is not the environment's, trajectories of
    several sequences, groups with advantages of their own. A group that cannot be had, because infrastructure
    failed, becomes rows without reward that train nothing; `holes` counts them.
    """

    def __init__(self, env: AgentEnv[Any], *, attempts: int = 3, max_batch_size: int = 64) -> None:
        """`env` is not set up yet, and its own policy is not used. `attempts`: tries for each group."""
        self.env = env
        self.holes = 0
        """Groups that could not be had."""
        self._attempts = attempts
        self._policy = TrainerPolicy(max_batch_size=max_batch_size)
        self._loop = BackgroundLoop("agentenv-trl")
        self._items: dict[str, Item] = {}
        env.runtime.policy = self._policy

    def __enter__(self) -> Self:
        """Set the environment up. Raises what that raises."""
        self._loop.start()
        try:
            self._loop.run(self.env.setup())
        except BaseException:
            self._loop.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Shut the environment down."""
        try:
            self._loop.run(self.env.shutdown())
        finally:
            self._loop.stop()

    def dataset(self, items: int) -> Any:
        """The environment's next `items` items as a `datasets.Dataset`; fewer when it has no more.

        A prompt is the item's number and task. It only names the item: the tokens the model sees are the environment's.
        """
        from datasets import Dataset  # noqa: PLC0415 - comes with the extra, and takes seconds

        prompts = self._loop.run(self._fetch(items))
        if not prompts:
            raise SinkError(f"{self.env.display_name} has no items")
        return Dataset.from_list([{"prompt": prompt} for prompt in prompts])

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[Any]]:
        """Play every prompt once, in groups of equal prompts. What `GRPOTrainer` calls."""
        self._check(prompts, trainer)
        rows = self._loop.run(self._play(list(prompts), trainer))
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "logprobs": [row.logprobs for row in rows],
            "env_mask": [row.sampled for row in rows],
            _REWARD: [row.reward for row in rows],
        }

    def reward(self, *, agentenv_reward: list[float | None], **_: Any) -> list[float | None]:
        """The environment's rewards, as a reward function. None where there is none."""
        return agentenv_reward

    async def _fetch(self, items: int) -> list[str]:
        prompts: list[str] = []
        while len(prompts) < items and (item := await self.env.get_next_item()) is not None:
            prompt = f"{len(self._items)}: {self.env.build_task(item)}"
            self._items[prompt] = item
            prompts.append(prompt)
        return prompts

    async def _play(self, prompts: list[str], trainer: Any) -> list[CompletionRow]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        size = self.env.config.group_size
        groups = [prompt for prompt, n in Counter(prompts).items() for _ in range(n // size)]
        async with (
            self._policy.lent(model, str(trainer.state.global_step)),
            _all_or_none() as collecting,
        ):
            tasks = [collecting.create_task(self._group(self._items[prompt])) for prompt in groups]
        found = [task.result() for task in tasks]
        if not any(found):
            raise SinkError(
                f"none of {len(groups)} groups could be had: see the log for the causes"
            )
        return self._placed(prompts, groups, found)

    async def _group(self, item: Item) -> list[CompletionRow] | None:
        """The rows of one group; None when infrastructure failed too often."""
        for _ in range(self._attempts):
            group, _ = await self.env.collect_trajectories(item)
            if group is not None:
                group = await self.env.postprocess_histories(group)
                return completion_rows(group, self.env.config.group_size)
        logger.error("a group could not be had in %d attempts; it trains nothing", self._attempts)
        self.holes += 1
        return None

    def _placed(
        self, prompts: list[str], groups: list[str], found: list[list[CompletionRow] | None]
    ) -> list[CompletionRow]:
        """The rows in the order of the prompts."""
        first = next(rows[0] for rows in found if rows)
        missing = [hole(first.completion_ids[-1])] * self.env.config.group_size
        waiting: defaultdict[str, list[CompletionRow]] = defaultdict(list)
        for prompt, rows in zip(groups, found, strict=True):
            waiting[prompt] += rows or missing
        return [waiting[prompt].pop(0) for prompt in prompts]

    def _check(self, prompts: Sequence[str], trainer: Any) -> None:
        _check_version()
        config = self.env.config
        if trainer.accelerator.num_processes > 1:
            raise ConfigError("TrlRollouts works in one process; this trainer has several")
        if trainer.use_vllm:
            raise ConfigError(
                "TrlRollouts samples from the trainer's own model: set use_vllm=False"
            )
        if trainer.tools or trainer.environment_factories:
            raise ConfigError(
                "the environment brings the tools: give GRPOTrainer neither tools nor environment_factory"
            )
        if trainer.temperature != config.agent_temperature:
            raise ConfigError(
                f"env.agent_temperature={config.agent_temperature:g} must be GRPOConfig.temperature="
                f"{trainer.temperature:g}: TRL computes its log-probs at its own"
            )
        for prompt, count in Counter(prompts).items():
            if prompt not in self._items:
                raise ConfigError(f"prompt {prompt[:80]!r} is not of this rollouts' dataset()")
            if count % config.group_size:
                raise ConfigError(
                    f"TRL asks for {count} trajectories of one prompt and env.group_size={config.group_size}: make "
                    f"num_generations (in evaluation num_generations_eval) the group size"
                )


def _check_version() -> None:
    first, last = TESTED_VERSIONS
    try:
        found = version("trl")
    except PackageNotFoundError:
        found = "none"
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if not first <= numbers < last:
        wanted = f">={first[0]}.{first[1]},<{last[0]}"
        raise ConfigError(
            f"trl {found} was not tried, and a version that ignores env_mask would train on tool output: "
            f"pip install 'trl{wanted}'"
        )


@asynccontextmanager
async def _all_or_none() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises its first error itself, and not inside an exception group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
