"""A bundled environment over a scripted policy, for the tests of each."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from agentenv import AgentEnv
from agentenv.policy.config import resolve_servers
from agentenv.runtime import EnvRuntime
from agentenv.testing import FakePolicy
from agentenv.testing.tokenizers import tiny_tokenizer
from agentenv.tokens.renderer import load_renderer
from agentenv_backends.config import parse_backend_config

EnvT = TypeVar("EnvT", bound=AgentEnv[Any])
TOKENIZER = tiny_tokenizer("qwen3")
END_IDS = (int(TOKENIZER.convert_tokens_to_ids("<|im_end|>")),)


def call(tool: str, **arguments: Any) -> str:
    """A tool call as the policy writes it."""
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"


@asynccontextmanager
async def scripted(
    kind: type[EnvT], script: Mapping[str, Sequence[str]], always: str = "", **settings: Any
) -> AsyncIterator[EnvT]:
    """The environment, set up in local sandboxes; trajectory `id` writes `script[id]`, one reply per turn;
    `always` is what every trajectory says instead.
    """
    config, given = kind.config_init()
    servers = resolve_servers(given)
    local = {"backend": parse_backend_config({"type": "local", "slots": 4})}
    changes = local | {"max_token_length": 16_384} | settings
    config = type(config).model_validate(config.model_dump() | changes)
    env = kind(config, servers)
    policy = FakePolicy(
        lambda request: always or script[request.trajectory_id][request.turn],
        tokenizer=TOKENIZER,
        end_ids=END_IDS,
    )
    renderer = load_renderer(TOKENIZER, "qwen3")
    env.runtime = EnvRuntime(config, servers, env.tools, policy=policy, renderer=renderer)
    await env.setup()
    try:
        yield env
    finally:
        await env.shutdown()
