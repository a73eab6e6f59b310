"""Requests as they are sent."""

import pytest

from agentenv_backends.requests import ExecRequest, WriteRequest
from agentenv_backends.results import FailureKind, OpFailure
from agentenv_backends.sandboxd import frames
from agentenv_backends.wire import encode_request


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        (ExecRequest("true", env={"A": "x" * frames.MAX_HEADER}), frames.MAX_HEADER),
        (WriteRequest("a", b"x" * (frames.MAX_BODY + 1)), frames.MAX_BODY),
    ],
)
def test_a_request_that_is_too_large_is_refused_with_the_limit_it_broke(request_, limit: int):
    refused = encode_request(request_)
    assert isinstance(refused, OpFailure)
    assert refused.kind is FailureKind.TOO_LARGE
    assert f"can have {limit} of them" in refused.message
