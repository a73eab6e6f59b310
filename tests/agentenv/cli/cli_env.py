"""An environment over fakes that the command line can start by name."""

from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr

from agentenv import AgentEnv, AgentEnvConfig, APIServerConfig
from agentenv.runtime import EnvRuntime
from agentenv.testing import FakePolicy
from agentenv.tokens.renderer import load_renderer
from agentenv_backends.testing import FakeProvider, fake_pool
from tests.agentenv.fake_env import END, TOKENIZER, EchoEnv, solver


class CliConfig(AgentEnvConfig):
    fails: bool = False
    """The environment's own switch: scoring raises."""
    latency_s: float = 0.0
    """Seconds the policy takes for a reply."""


class CliEnv(EchoEnv):
    """Echoes for the command line."""

    name = "cli test"
    env_config_cls = CliConfig

    def __init__(
        self, config: CliConfig, server_configs: Sequence[APIServerConfig], **rest: Any
    ) -> None:
        super().__init__(config, server_configs, runtime=object(), **rest)  # type: ignore[arg-type]
        self.runtime = EnvRuntime(
            config,
            [],
            self.tools,
            backend=fake_pool(FakeProvider()),
            policy=FakePolicy(solver, tokenizer=TOKENIZER, end_ids=END, latency_s=config.latency_s),
            renderer=load_renderer(TOKENIZER, "qwen3"),
        )

    @classmethod
    def config_init(cls) -> tuple[CliConfig, list[APIServerConfig]]:
        return (
            CliConfig(
                group_size=2, total_steps=3, seed=7, renderer="qwen3", tokenizer_name="nowhere"
            ),
            [
                APIServerConfig(
                    server_type="vllm",
                    base_url="http://localhost:1/v1",
                    api_key=SecretStr("canary-key"),
                )
            ],
        )

    async def score_trajectory(self, item: Any, final_response: str) -> float:
        if self.config.fails:  # type: ignore[attr-defined]
            raise RuntimeError("the verifier broke \x1b[31m")
        return await super().score_trajectory(item, final_response)

    async def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        group, _ = await self.collect_trajectories(0)
        assert group is not None
        return {"accuracy": sum(group["scores"]) / len(group["scores"])}


class NoEnvironment:
    pass


class Silent(CliEnv):
    """Has no evaluation."""

    evaluate = AgentEnv.evaluate
