"""A small environment of Atropos, run by the Python that has atroposlib: `atropos_env.py serve --env.ways chat ...`.

Nothing of ours is in reach of that process. It gets its replies in one of two ways:

    chat       chat completions, tokenised again by `tokenize_for_trainer`, as about half of Atropos' environments do
    managed    `managed_server`, which keeps the engine's own ids and log-probs
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

from atroposlib.envs.base import (
    APIServerConfig,
    BaseEnv,
    BaseEnvConfig,
    ScoredDataGroup,
)
from atroposlib.utils.tokenize_for_trainer import tokenize_for_trainer

_MAX_TOKENS = 24


class CountingConfig(BaseEnvConfig):  # type: ignore[misc]
    """Its settings."""

    ways: Literal["chat", "managed"] = "chat"


class Counting(BaseEnv):  # type: ignore[misc]
    """Endless questions. A reply's score is its place in the group, so that no group is even."""

    name = "counting"
    env_config_cls = CountingConfig

    @classmethod
    def config_init(cls) -> tuple[CountingConfig, list[APIServerConfig]]:
        """What the command line overrides."""
        return CountingConfig(use_wandb=False), [APIServerConfig()]

    async def setup(self) -> None:
        """Start to count."""
        self.numbers = itertools.count()

    async def get_next_item(self) -> int:
        """The next number."""
        return next(self.numbers)

    async def evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to evaluate."""

    async def collect_trajectories(self, item: int) -> tuple[ScoredDataGroup, list[Any]]:
        """One group."""
        question = [{"role": "user", "content": f"What comes after {item}?"}]
        ways = {"chat": self._chat, "managed": self._managed}
        return await ways[self.config.ways](question), []

    async def _chat(self, question: list[dict[str, str]]) -> ScoredDataGroup:
        group = _empty_group()
        completion = await self.server.chat_completion(
            messages=question, n=self.config.group_size, max_tokens=_MAX_TOKENS
        )
        for place, choice in enumerate(completion.choices):
            reply = {"role": "assistant", "content": choice.message.content}
            row = tokenize_for_trainer(self.tokenizer, [*question, reply])
            group["tokens"].append(row["tokens"])
            group["masks"].append(row["masks"])
            group["scores"].append(float(place))
        return group

    async def _managed(self, question: list[dict[str, str]]) -> ScoredDataGroup:
        group = _empty_group()
        group["inference_logprobs"] = []
        for place in range(self.config.group_size):
            async with self.server.managed_server(tokenizer=self.tokenizer) as managed:
                await managed.chat_completion(messages=question, n=1, max_tokens=_MAX_TOKENS)
                (node,) = managed.get_state()["nodes"]
            group["tokens"].append(node.tokens)
            group["masks"].append(node.masked_tokens)
            group["inference_logprobs"].append(node.logprobs)
            group["scores"].append(float(place))
        return group


def _empty_group() -> ScoredDataGroup:
    group: ScoredDataGroup = {"tokens": [], "masks": [], "scores": []}
    return group


if __name__ == "__main__":
    Counting.cli()
