"""Chat models of any provider as a policy: for evaluation, since none of them returns tokens.

    policy = chat_policy("claude-sonnet-4-20250514")
    policy = chat_policy("my-model", base_url="http://localhost:8000/v1")

`routing` says which provider a name means, `keys` where its key comes from, `client` speaks to it through Pydantic AI
(the `models` extra), which knows each provider's requests, replies, errors and prices. Retries and deadlines are ours.
"""

from agentenv.models.policy import chat_policy
from agentenv.models.routing import ModelRoute, Provider, route_model
from agentenv.models.settings import ChatModelSettings

__all__ = ["ChatModelSettings", "ModelRoute", "Provider", "chat_policy", "route_model"]
