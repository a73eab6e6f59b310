"""Asking a policy to think."""

import pytest

from agentenv import AgentEnvConfig
from agentenv.reasoning import chat_options, template_options

LOCAL = "http://localhost:8000/v1"


def test_nothing_is_asked_by_default():
    assert template_options(AgentEnvConfig()) == {}
    assert chat_options(AgentEnvConfig(), LOCAL) == {}


@pytest.mark.parametrize(
    ("config", "reasoning"),
    [
        ({"thinking_mode": True}, {"enabled": True}),
        ({"reasoning_effort": "high"}, {"enabled": True, "effort": "high"}),
        ({"max_reasoning_tokens": 2048}, {"enabled": True, "max_tokens": 2048}),
        (
            {"reasoning_effort": "low", "max_reasoning_tokens": 2048},
            {"enabled": True, "effort": "low"},
        ),
    ],
)
def test_a_chat_server_is_asked_in_the_common_form(config: dict[str, object], reasoning: object):
    asked = AgentEnvConfig.model_validate(config)
    assert chat_options(asked, LOCAL) == {"reasoning": reasoning}
    assert template_options(asked) == {"enable_thinking": True}


def test_openai_is_asked_in_its_own_form():
    url = "https://api.openai.com/v1"
    assert chat_options(AgentEnvConfig(thinking_mode=True), url) == {"reasoning_effort": "medium"}
    assert chat_options(AgentEnvConfig(reasoning_effort="low"), url) == {"reasoning_effort": "low"}
