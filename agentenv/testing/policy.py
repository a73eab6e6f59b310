"""A policy in memory, for tests that need no HTTP."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentenv.errors import TokensUnavailableError
from agentenv.policy.base import ChatCompletion, Completion
from agentenv.testing.script import EncodesText, FakeRequest, ReplyScript, Script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentenv.policy.base import SamplingParams


class FakePolicy:
    """A `PolicyClient` that says what its script says. An exception in the script is raised as it
    is.

    `requests` holds every request in order of arrival; `most_at_once` how many were ever under way
    together.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        tokenizer: EncodesText | None = None,
        end_ids: Sequence[int] = (),
        latency_s: float = 0.0,
        returns_tokens: bool = True,
        takes_images: bool = False,
    ) -> None:
        self.returns_tokens = returns_tokens
        self.takes_images = takes_images
        self.requests: list[FakeRequest] = []
        self.concurrency = 0
        """What `raise_concurrency` was last raised to."""
        self.weight = 1.0
        """What `weigh` was last given."""
        self.in_use = 0
        self.most_at_once = 0
        self.started = self.closed = False
        self._script = ReplyScript(script, tokenizer=tokenizer, end_ids=end_ids)
        self._latency_s = latency_s

    async def start(self) -> None:
        """Only noted."""
        self.started = True

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str
    ) -> Completion:
        """The scripted completion, after the latency."""
        if not self.returns_tokens:
            raise TokensUnavailableError("this fake policy was made with returns_tokens=False")
        return await self._answer(_request(trajectory_id, params, prompt_ids=tuple(prompt_ids)))

    async def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams, *, trajectory_id: str
    ) -> ChatCompletion:
        """The scripted completion's text, after the latency."""
        done = await self._answer(_request(trajectory_id, params, messages=tuple(messages)))
        return ChatCompletion(
            done.text or "", done.finish_reason, completion_tokens=len(done.token_ids)
        )

    def raise_concurrency(self, requests: int) -> None:
        """Only noted."""
        self.concurrency = max(self.concurrency, requests)

    def weigh(self, weight: float) -> None:
        """Only noted."""
        self.weight = weight

    async def close(self) -> None:
        """Only noted."""
        self.closed = True

    async def _answer(self, request: FakeRequest) -> Completion:
        request = replace(request, turn=self._script.turn(request.trajectory_id))
        self.requests.append(request)
        with self._under_way():
            await asyncio.sleep(self._latency_s)
            completion = self._script.completion(request)
        self._script.delivered(request.trajectory_id)
        return completion

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self.in_use += 1
        self.most_at_once = max(self.most_at_once, self.in_use)
        try:
            yield
        finally:
            self.in_use -= 1


def _request(
    trajectory_id: str,
    params: SamplingParams,
    *,
    prompt_ids: tuple[int, ...] = (),
    messages: tuple[dict[str, Any], ...] = (),
) -> FakeRequest:
    return FakeRequest(
        trajectory_id=trajectory_id,
        turn=0,
        max_tokens=params.max_tokens,
        prompt_ids=prompt_ids,
        messages=messages,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed,
        stop_token_ids=params.stop_token_ids,
        extra=params.extra,
    )
