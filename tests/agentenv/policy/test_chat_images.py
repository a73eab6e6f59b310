"""Images of tool results on their way to a chat server."""

import pytest
from pydantic import ValidationError

from agentenv.policy import APIServerConfig
from agentenv.policy.router import EvaluationView
from agentenv.session import ChatSession
from agentenv.testing import running_engine
from agentenv.tokens.base import Message
from tests.agentenv.test_images import PICTURE, SHOWN, TOOL_MESSAGE


@pytest.mark.parametrize("takes_images", [True, False])
async def test_a_server_that_takes_images_is_sent_content_parts_and_another_text(
    takes_images, policy_over
):
    async with (
        running_engine(script=["Blue."]) as engine,
        policy_over(engine, server_type="openai", takes_images=takes_images) as policy,
    ):
        assert policy.takes_images is EvaluationView(policy).takes_images is takes_images
        session = ChatSession(policy, [], trajectory_id="t", seed=1, token_budget=40)
        session.add(Message("user", "Look."), TOOL_MESSAGE)
        await session.sample(turn=1, temperature=1.0, max_tokens=None)
    (asked,) = engine.engine.requests
    text = f"<tool_response>\n{SHOWN.to_json()}\n</tool_response>"
    parts = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": PICTURE.url}},
    ]
    assert asked.messages[-1] == {"role": "user", "content": parts if takes_images else text}


def test_a_server_that_is_sent_token_ids_cannot_take_images():
    with pytest.raises(ValidationError, match="vllm is sent token ids, which are text"):
        APIServerConfig(server_type="vllm", takes_images=True)
