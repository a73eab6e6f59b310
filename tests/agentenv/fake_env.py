"""An environment over fake hosts and a fake policy: everything real in between."""

import json
from collections.abc import Callable
from typing import Any

from agentenv import AgentEnv, AgentEnvConfig, Item, ToolCall
from agentenv.runtime import EnvRuntime
from agentenv.testing import FakePolicy, FakeRequest
from agentenv.testing.tokenizers import tiny_tokenizer
from agentenv.tokens.renderer import load_renderer
from agentenv_backends.base import Backend
from agentenv_backends.testing import FakeProvider, Faults, fake_pool

TOKENIZER = tiny_tokenizer("qwen3")
END = (TOKENIZER.convert_tokens_to_ids("<|im_end|>"),)


def call_text(command: str) -> str:
    call = json.dumps({"name": "terminal", "arguments": {"command": command}})
    return f"<tool_call>\n{call}\n</tool_call>"


def solver(request: FakeRequest) -> str:
    """Right or wrong by the request's seed alone, one tool call then an answer."""
    if request.turn == 0:
        return call_text("echo look")
    return "right" if (request.seed or 0) % 2 else "wrong"


class EchoEnv(AgentEnv[AgentEnvConfig]):
    """Scores 1.0 for the answer `right`; its items are numbers."""

    name = "echo"

    async def setup_agent_env(self) -> None:
        self.next_item = 0
        self.items = 1000
        self.verdict: Callable[[Item], Any] | None = None

    async def get_next_item(self) -> Item | None:
        self.next_item += 1
        return self.next_item - 1 if self.next_item <= self.items else None

    def build_task(self, item: Item) -> str:
        return f"task {item}"

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        if self.verdict is not None:
            return self.verdict(item)  # type: ignore[no-any-return]
        return 1.0 if final_response == "right" else 0.0

    async def setup_trajectory_workspace(
        self, item: Item, *, trajectory_id: str, exec_tool: Any
    ) -> Any:
        result = await exec_tool(ToolCall("terminal", {"command": f"echo {item}"}))
        return {"said": result.output}


def make_env(
    script: Any = solver,
    *,
    faults: Faults | None = None,
    backend: Backend | None = None,
    slots: int = 4,
    latency_s: float = 0.0,
    env_cls: type[EchoEnv] = EchoEnv,
    **config: Any,
) -> EchoEnv:
    settings = env_cls.env_config_cls(
        **{"group_size": 2, "total_steps": 3, "seed": 7, "renderer": "qwen3", **config}
    )
    provider = FakeProvider(faults=faults) if faults else FakeProvider()
    policy = FakePolicy(script, tokenizer=TOKENIZER, end_ids=END, latency_s=latency_s)
    probe = env_cls(settings, [], runtime=object())  # type: ignore[arg-type]
    runtime = EnvRuntime(
        settings,
        [],
        probe.tools,
        backend=backend or fake_pool(provider, slots=slots),
        policy=policy,
        renderer=load_renderer(TOKENIZER, "qwen3"),
    )
    return env_cls(settings, [], runtime=runtime)


def policy_of(env: EchoEnv) -> FakePolicy:
    policy = env.runtime.policy
    assert isinstance(policy, FakePolicy)
    return policy
