from agentenv.tasks.lock import _plain
from agentenv.tasks.outputs import rollout_details
from agentenv.tokens.base import TokenSequence, Turn


def test_tokens_are_told_by_turn_with_all_that_came_before():
    turns = (Turn(1, 2, 4, "v1", "stop"), Turn(2, 5, 6, "v2", "length"))
    tokens = [1, 2, 3, 4, 5, 6]
    sequence = TokenSequence(tokens, tokens, [1.0, 1.0, -0.5, -0.25, 1.0, -0.125], turns=turns)
    assert rollout_details([sequence, TokenSequence([1], [1], [0.0])]) == [
        {
            "prompt_token_ids": [[1, 2], [1, 2, 3, 4, 5]],
            "completion_token_ids": [[3, 4], [6]],
            "logprobs": [[-0.5, -0.25], [-0.125]],
            "extra": {"policy_version": ["v1", "v2"], "finish_reason": ["stop", "length"]},
        }
    ]
    assert rollout_details([]) is None


def test_a_lock_has_no_secrets():
    values = {"token": "x", "env": {"API_KEY": "x", "COLOUR": "red"}, "ca": None, "slots": 1}
    assert _plain(values) == {
        "token": "****",
        "env": {"API_KEY": "****", "COLOUR": "red"},
        "ca": None,
        "slots": 1,
    }
