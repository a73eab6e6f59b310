from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.errors import ContextLengthError, PolicyRequestError
from agentenv.policy import APIServerConfig
from agentenv.policy.faults import (
    EngineFaultError,
    RetryPolicy,
    error_for_status,
    excerpt,
    parse_retry_after,
)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("0", 0.0), ("1.5", 1.5), ("3600", 3600.0), ("-5", 0.0), ("soon", None)],
)
def test_a_retry_after_in_seconds_is_read(header, seconds):
    assert parse_retry_after(header) == seconds


@given(st.text(max_size=40))
def test_any_retry_after_is_a_finite_wait_or_none(header):
    seconds = parse_retry_after(header)
    assert seconds is None or 0 <= seconds < float("inf")


def test_a_retry_after_as_a_date_is_the_time_until_then():
    then = datetime.now(UTC) + timedelta(seconds=90)
    seconds = parse_retry_after(format_datetime(then, usegmt=True))
    assert seconds is not None
    assert 80 < seconds <= 90
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@given(st.integers(1, 1000), st.integers(0, 2**32))
def test_a_backoff_doubles_up_to_its_limit_with_jitter(attempt, seed):
    policy = RetryPolicy(base_delay=0.5, max_delay=8.0)
    delay = policy.delay(attempt, None, random.Random(seed))
    full = min(8.0, 0.5 * 2.0 ** min(attempt - 1, 10))
    assert full / 2 <= delay <= full


def test_a_wish_of_the_server_is_honoured_up_to_the_cap_and_spread():
    policy = RetryPolicy(base_delay=0.5, max_delay=8.0, max_retry_after=30.0)
    delays = {policy.delay(1, 3600.0, random.Random(seed)) for seed in range(20)}
    assert all(30.0 <= delay <= 30.5 for delay in delays)
    assert len(delays) > 10
    assert policy.delay(1, 0.0, random.Random(0)) >= 0.25


def test_the_most_patient_of_the_servers_decides():
    configs = [APIServerConfig(max_attempts=2, max_outage=9), APIServerConfig(max_attempts=5)]
    policy = RetryPolicy.of(configs)
    assert (policy.max_attempts, policy.max_outage) == (5, 120)


CONTEXT_COMPLAINTS = [
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "Requested token count exceeds the model's maximum context length of 4096 tokens.",
    '{"error": {"code": "context_length_exceeded", "message": "too many tokens"}}',
]


@pytest.mark.parametrize("complaint", CONTEXT_COMPLAINTS)
def test_the_words_of_the_engines_for_a_prompt_that_does_not_fit_are_known(complaint):
    error = error_for_status("http://h", 400, complaint.encode(), None)
    assert isinstance(error, ContextLengthError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, PolicyRequestError), (404, PolicyRequestError), (301, PolicyRequestError)]
    + [(status, EngineFaultError) for status in (408, 429, 500, 502, 503, 504, 529)],
)
def test_a_status_is_final_or_worth_another_attempt(status, kind):
    assert type(error_for_status("http://h", status, b"no", None)) is kind


@given(st.binary(max_size=2000))
def test_any_body_is_quoted_on_one_short_line(body):
    for text in (excerpt(body), str(error_for_status("http://h", 500, body, None))):
        assert "\n" not in text
        assert len(text) < 3000


def test_a_deeply_nested_body_is_quoted_too():
    body = b"[" * 100_000
    assert "500" in str(error_for_status("http://h", 500, body, None))
