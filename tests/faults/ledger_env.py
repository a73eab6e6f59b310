"""An environment whose reward depends on every tool call of a trajectory, and a policy that acts by seed alone.

The agent appends numbers to a file; the reward is a function of what the file holds in the end. So a call that is lost,
run twice, or run in another slot's workspace changes the reward.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agentenv import AgentEnv, AgentEnvConfig, Item, ToolCall
from agentenv.runtime import EnvRuntime
from agentenv.testing import FakePolicy, FakeRequest
from agentenv.testing.tokenizers import tiny_tokenizer
from agentenv.tokens.renderer import load_renderer

if TYPE_CHECKING:
    from agentenv.policy.base import PolicyClient
    from agentenv.policy.config import APIServerConfig
    from agentenv.testing.script import Script
    from agentenv_backends.base import Backend

TOKENIZER = tiny_tokenizer("qwen3")
END_IDS = (int(TOKENIZER.convert_tokens_to_ids("<|im_end|>")),)
_CALLS = 2
_MODULUS = 5


def call_text(command: str) -> str:
    """A `terminal` call as the policy writes it."""
    call = json.dumps({"name": "terminal", "arguments": {"command": command}})
    return f"<tool_call>\n{call}\n</tool_call>"


def append_by_seed(request: FakeRequest) -> str:
    """Append a number drawn from the request's seed, twice; then answer."""
    if request.turn < _CALLS:
        return call_text(f"echo {(request.seed or 0) % 1000} >> ledger; wc -l < ledger")
    return "Done."


class LedgerEnv(AgentEnv[AgentEnvConfig]):
    """Endless items; the score is the sum of the ledger modulo five, from 0.0 to 1.0."""

    name = "ledger"

    async def setup_agent_env(self) -> None:
        self.next_item = 0

    async def get_next_item(self) -> Item:
        self.next_item += 1
        return self.next_item

    def build_task(self, item: Item) -> str:
        return f"Keep ledger number {item}."

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        raise AssertionError("the verify hook is overridden")

    async def setup_trajectory_workspace(
        self, item: Item, *, trajectory_id: str, exec_tool: Any
    ) -> dict[str, Any]:
        result = await exec_tool(ToolCall("terminal", {"command": f"echo {item} > ledger"}))
        assert result.success, result
        return {}

    async def verify_and_score_trajectory(
        self,
        item: Item,
        final_response: str,
        *,
        trajectory_id: str,
        exec_tool: Any,
        agent_result: Any = None,
        workspace_meta: dict[str, Any] | None = None,
    ) -> tuple[float, dict[str, Any]]:
        result = await exec_tool(ToolCall("terminal", {"command": "cat ledger"}))
        numbers = [int(line) for line in result.output.split()]
        return sum(numbers) % _MODULUS / (_MODULUS - 1), {"ledger": numbers}


def ledger_env(backend: Backend, *, script: Script = append_by_seed, **options: Any) -> LedgerEnv:
    """`LedgerEnv` over `backend`; see `env_over`."""
    env = env_over(LedgerEnv, backend, script=script, **options)
    assert isinstance(env, LedgerEnv)
    return env


def env_over(
    kind: type[AgentEnv[AgentEnvConfig]],
    backend: Backend,
    *,
    script: Script,
    policy: PolicyClient | None = None,
    servers: list[APIServerConfig] | None = None,
    **settings: Any,
) -> AgentEnv[AgentEnvConfig]:
    """An environment over `backend`, with a fake policy unless `servers` or a `policy` is given. Seeded."""
    fixed: dict[str, Any] = {"renderer": "qwen3", "seed": 11, "max_token_length": 8192}
    config = AgentEnvConfig(**(fixed | settings))
    if servers is None and policy is None:
        policy = FakePolicy(script, tokenizer=TOKENIZER, end_ids=END_IDS)
    tools = kind(config, servers or [], runtime=object()).tools  # type: ignore[arg-type]
    runtime = EnvRuntime(
        config,
        servers or [],
        tools,
        backend=backend,
        policy=policy,
        renderer=load_renderer(TOKENIZER, "qwen3"),
    )
    return kind(config, servers or [], runtime=runtime)
