"""Requests as they are sent."""

from collections.abc import Callable

import pytest

from agentenv_backends.requests import ExecRequest, Request, WriteRequest
from agentenv_backends.results import FailureKind, OpFailure
from agentenv_backends.sandboxd import frames
from agentenv_backends.wire import encode_request


@pytest.mark.parametrize(
    ("large", "limit"),
    [
        (lambda: ExecRequest("true", env={"A": "x" * frames.MAX_HEADER}), frames.MAX_HEADER),
        (lambda: WriteRequest("a", b"x" * (frames.MAX_BODY + 1)), frames.MAX_BODY),
    ],
    ids=["header", "body"],
)
def test_a_request_that_is_too_large_is_refused_with_the_limit_it_broke(
    large: Callable[[], Request], limit: int
):
    refused = encode_request(large())
    assert isinstance(refused, OpFailure)
    assert refused.kind is FailureKind.TOO_LARGE
    assert f"can have {limit} of them" in refused.message
