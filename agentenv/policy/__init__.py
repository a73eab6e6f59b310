"""Where completions come from: token ids in, token ids with their log-probs out.

`base` is the contract, `config` says where the servers are, `build_policy` makes the client. Over
HTTP: `wire` knows each engine's requests and replies, `server` speaks to one server, `router` to
several, with retries. In process: `transformers_policy` (the `torch` extra), imported only when it
is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentenv.errors import ConfigError
from agentenv.policy.base import ChatCompletion, Completion, PolicyClient, SamplingParams
from agentenv.policy.config import APIServerConfig, ServerBaseline, resolve_servers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "APIServerConfig",
    "ChatCompletion",
    "Completion",
    "PolicyClient",
    "SamplingParams",
    "ServerBaseline",
    "build_policy",
    "for_evaluation",
]


def build_policy(
    server_configs: ServerBaseline | Sequence[APIServerConfig], *, vocab_size: int | None = None
) -> PolicyClient:
    """The policy that these servers serve, not yet started.

    With `vocab_size`, a reply with an id outside the vocabulary is refused. Raises `ConfigError`
    for no server, a server without address, servers of which only some return tokens, or
    `transformers` beside another.
    """
    configs = resolve_servers(server_configs)
    if not configs:
        raise ConfigError("no inference server is configured; give at least one with a base_url")
    kinds = {config.server_type for config in configs}
    if "transformers" in kinds:
        return _in_process(configs)
    if len(kinds) > 1 and "openai" in kinds:
        raise ConfigError(
            f"server_type {sorted(kinds)} cannot serve one policy: "
            "openai returns no token ids, the others do"
        )
    for place, config in enumerate(configs):
        if not config.base_url:
            raise ConfigError(
                f"server {place} ({config.server_type}) has no base_url, e.g. http://localhost:8000/v1"
            )
    from agentenv.policy.router import PolicyRouter  # noqa: PLC0415 - aiohttp is loaded only where it is used
    from agentenv.policy.server import EngineServer  # noqa: PLC0415

    return PolicyRouter([EngineServer(config, vocab_size=vocab_size) for config in configs])


def for_evaluation(policy: PolicyClient) -> PolicyClient:
    """The policy under the limits of evaluation, where it has limits of its own; else the policy
    itself.

    What it returns shares the policy's connections: whoever owns the policy starts and closes it.
    """
    view = getattr(policy, "for_evaluation", None)
    return policy if view is None else view()


def _in_process(configs: Sequence[APIServerConfig]) -> PolicyClient:
    if len(configs) > 1:
        raise ConfigError(
            "server_type 'transformers' runs in this process and must be the only server"
        )
    try:
        from agentenv.policy.transformers_policy import TransformersPolicy  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError(
            "server_type 'transformers' needs torch: pip install 'agentenv[torch]'"
        ) from error
    return TransformersPolicy.from_config(configs[0])
