"""An environment that a sweep's configuration can name: fake hosts and a fake policy, everything real in between."""

import os
import random
import signal
from typing import Any

from agentenv import AgentEnvConfig, AgentResult, APIServerConfig, Item, ToolCall
from agentenv.errors import PolicyError
from agentenv.runtime import EnvRuntime
from agentenv.testing import FakePolicy, FakeRequest
from agentenv.tokens.renderer import load_renderer
from agentenv_backends.testing import FakeProvider, fake_pool
from tests.agentenv.fake_env import END, TOKENIZER, EchoEnv, call_text


class SweptConfig(AgentEnvConfig):
    """What of it a sweep may change."""

    right: str = "right"
    """The answer that is worth 1."""
    broken: bool = False
    """Whether the engine fails at every second request of a trajectory's first try."""
    noise: int = 0
    """Characters that a trajectory holds beside its answer, which no compression makes less."""


def script(broken: bool, noise: int) -> Any:
    def say(request: FakeRequest) -> Any:
        if request.turn == 0:
            return call_text(f"echo {random.Random(request.seed).randbytes(noise // 2).hex()}")
        if broken and request.trajectory_id.endswith(".1"):
            return PolicyError("the engine fell over")
        return "right" if (request.seed or 0) % 2 else "wrong"

    return say


class SweptEnv(EchoEnv):
    """`EchoEnv` with everything it needs in memory. Judges by the final response alone."""

    env_config_cls = SweptConfig
    config: SweptConfig

    @classmethod
    def config_init(cls) -> tuple[AgentEnvConfig, list[APIServerConfig]]:
        return SweptConfig(renderer="qwen3"), [APIServerConfig(base_url="http://unused")]

    def __init__(self, config: Any, servers: Any, **more: Any) -> None:
        super().__init__(config, servers, runtime=object())  # type: ignore[arg-type]
        self.runtime = EnvRuntime(
            config,
            servers,
            self.tools,
            backend=fake_pool(FakeProvider(), slots=4),
            policy=FakePolicy(
                script(config.broken, config.noise), tokenizer=TOKENIZER, end_ids=END
            ),
            renderer=load_renderer(TOKENIZER, "qwen3"),
        )

    async def setup_trajectory_workspace(self, item: Item, **more: Any) -> dict[str, Any]:
        return {}

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        return float(final_response == self.config.right)


class InterruptedEnv(SweptEnv):
    """Somebody presses Ctrl-C while it is being judged."""

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return await super().score_trajectory(item, final_response)


class LookingEnv(SweptEnv):
    """The same, judged in the workspace."""

    async def verify_and_score_trajectory(
        self,
        item: Item,
        final_response: str,
        *,
        trajectory_id: str,
        exec_tool: Any,
        agent_result: AgentResult | None = None,
        workspace_meta: dict[str, Any] | None = None,
    ) -> tuple[float, dict[str, Any]]:
        await exec_tool(ToolCall("terminal", {"command": "true"}))
        return float(final_response == "right"), {}


class WorkspaceEnv(SweptEnv):
    """In real sandboxes of this machine: what the agent wrote into its workspace is judged there."""

    def __init__(self, config: Any, servers: Any, **more: Any) -> None:
        super().__init__(config, servers, **more)
        self.runtime = EnvRuntime(
            config,
            servers,
            self.tools,
            policy=FakePolicy(write_answer, tokenizer=TOKENIZER, end_ids=END),
            renderer=load_renderer(TOKENIZER, "qwen3"),
        )

    async def setup_trajectory_workspace(self, item: Item, **more: Any) -> dict[str, Any]:
        await more["exec_tool"](command("echo given > given.txt"))
        return {"given": "given"}

    async def verify_and_score_trajectory(
        self, item: Item, final_response: str, **more: Any
    ) -> tuple[float, dict[str, Any]]:
        given = more["workspace_meta"]["given"]
        found = await more["exec_tool"](command("cat given.txt below/answer; touch judged; ls -A"))
        wanted = [given, self.config.right, "below", "given.txt", "judged"]
        return float(found.output.split() == wanted), {"found": found.output}


def command(text: str) -> ToolCall:
    return ToolCall("terminal", {"command": text})


def write_answer(request: FakeRequest) -> Any:
    said = "right" if (request.seed or 0) % 2 else "wrong"
    return call_text(f"mkdir below; echo {said} > below/answer") if request.turn == 0 else said
