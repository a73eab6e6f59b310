"""A chat model of each provider, against a fake one on a loopback port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agentenv.models import chat_policy
from agentenv.models.client import ToolChatModel
from agentenv.policy.base import SamplingParams
from agentenv.testing import FakeProviders, running_app
from agentenv_tools.schema import ToolSchema

PROTOCOLS = {
    "openai": "gpt-4o-2024-08-06",
    "compatible": "my-model",
    "anthropic": "claude-sonnet-4-20250514",
    "gemini": "gemini-2.5-flash",
    "bedrock": "bedrock/anthropic.claude-3-5-sonnet-20240620-v1:0",
}
"""Models by who serves them."""
PARAMS = SamplingParams(max_tokens=64, temperature=0.5)
TOOLS = (
    ToolSchema("look", "Look at a thing.", {"thing": {"type": "string"}}, ["thing"]),
    ToolSchema("stop", "Stop."),
)
ENVIRON = {
    "OPENAI_API_KEY": "canary-openai",
    "ANTHROPIC_API_KEY": "canary-anthropic",
    "GEMINI_API_KEY": "canary-gemini",
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "canary-aws",
    "AWS_REGION": "us-east-1",
}


@asynccontextmanager
async def served(
    protocol: str, providers: FakeProviders, **settings: Any
) -> AsyncIterator[ToolChatModel]:
    """A started model that asks `providers`."""
    async with running_app(providers) as running:
        url = running.root_url + ("/v1" if protocol in ("openai", "compatible") else "")
        given: dict[str, Any] = {"retry_base_delay_s": 0.01, "base_url": url} | settings
        policy = chat_policy(PROTOCOLS[protocol], environ=ENVIRON, env_file=None, **given)
        assert isinstance(policy, ToolChatModel)
        await policy.start()
        try:
            yield policy
        finally:
            await policy.close()
