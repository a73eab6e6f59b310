"""A policy over fake engines, with delays short enough for tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from agentenv.policy import APIServerConfig, build_policy
from agentenv.policy.router import PolicyRouter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from agentenv.testing import RunningEngine

QUICK: dict[str, Any] = {
    "server_type": "vllm",
    "retry_base_delay": 0.001,
    "retry_max_delay": 0.01,
    "max_retry_after": 0.01,
    "health_interval": 0.02,
    "startup_timeout": 5.0,
}
"""Not for use in the field."""


@asynccontextmanager
async def _policy_over(
    *engines: RunningEngine, vocab_size: int | None = None, **options: Any
) -> AsyncIterator[PolicyRouter]:
    configs = [
        APIServerConfig(**(QUICK | {"base_url": engine.base_url} | options)) for engine in engines
    ]
    policy = build_policy(configs, vocab_size=vocab_size)
    assert isinstance(policy, PolicyRouter)
    await policy.start()
    try:
        yield policy
        for server in policy.stats():
            assert set(server.in_use.values()) == set(server.waiting.values()) == {0}
    finally:
        await policy.close()


@pytest.fixture
def policy_over() -> Callable[..., AbstractAsyncContextManager[PolicyRouter]]:
    """A started policy over engines, closed at the end, whose gauges must be back to 0 then."""
    return _policy_over
