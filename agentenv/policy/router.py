"""Several servers as one policy: who is asked, how often, and what happens when one of them
fails.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agentenv.errors import (
    ContextLengthError,
    NotStartedError,
    PolicyError,
    PolicyRequestError,
    PolicyTimeoutError,
    TokensUnavailableError,
)
from agentenv.policy.base import SamplingParams
from agentenv.policy.faults import EngineFaultError, RetryPolicy
from agentenv.policy.server import EngineServer, Split

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agentenv.policy.base import ChatCompletion, Completion
    from agentenv.policy.server import ServerStats

T = TypeVar("T")

CHECK_TRAJECTORY = "agentenv-start-check"
"""The trajectory id of the one-token generation with which `start` checks a server's answers."""
_CHECK_PROMPT = (1,)
_PROBE_WHILE_OUT = 1.0
_REMEMBERED_TRAJECTORIES = 65_536

logger = logging.getLogger(__name__)


class _TakenOutError(Exception):
    """The server was taken out while a call waited for its permit. The call goes elsewhere;
    nothing was sent.
    """


class PolicyRouter:
    """A `PolicyClient` over one or more servers of one kind.

    A trajectory stays with its server while that is healthy; a new one goes to the server with the
    least load. An attempt that fails in a way that may pass is repeated, on another server if there
    is one, after a backoff during which no permit is held. A server is taken out when it cannot be
    reached, when several attempts in a row failed or when its health probe fails, and comes back
    when its probe succeeds. A call ends by its deadline (`timeout`), whatever happens. A request
    whose reply was lost is sent again: sampling twice harms nobody.

    Belongs to one event loop.
    """

    def __init__(
        self, servers: Sequence[EngineServer], *, retry: RetryPolicy | None = None
    ) -> None:
        self._servers = tuple(servers)
        self._retry = retry or RetryPolicy.of(server.config for server in servers)
        self._deadline = max(server.config.timeout for server in servers)
        self._jitter = random.Random()  # noqa: S311 - spreads retries, guards nothing
        self._homes: OrderedDict[str, EngineServer] = OrderedDict()
        self._some_healthy = asyncio.Event()
        self._some_healthy.set()
        self._watchers: list[asyncio.Task[None]] = []
        self._started = False
        self.returns_tokens = all(server.returns_tokens for server in servers)
        self.takes_images = all(server.config.takes_images for server in servers)

    async def start(self) -> None:
        """Wait for the servers, check the answers of each once, and begin to watch them.

        Raises `TokensUnavailableError` or `PolicyRequestError` when a server that answers cannot be
        used as configured, `PolicyError` when none answers. A server that does not answer yet is
        left out until it does.
        """
        if self._started:
            return
        try:
            await self._check_all()
        except BaseException:
            await self.close()
            raise
        self._started = True
        self._watchers = [asyncio.create_task(self._watch(server)) for server in self._servers]

    async def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        trajectory_id: str,
        split: Split = Split.TRAIN,
    ) -> Completion:
        """See `PolicyClient.generate`. `split` says whose limit the call counts against."""
        attempt = partial(
            EngineServer.generate,
            prompt_ids=prompt_ids,
            params=params,
            trajectory_id=trajectory_id,
            split=split,
        )
        return await self._call(attempt, trajectory_id)

    async def chat(
        self,
        messages: Sequence[dict[str, Any]],
        params: SamplingParams,
        *,
        trajectory_id: str,
        split: Split = Split.TRAIN,
    ) -> ChatCompletion:
        """See `PolicyClient.chat`. `split` says whose limit the call counts against."""
        attempt = partial(
            EngineServer.chat,
            messages=messages,
            params=params,
            trajectory_id=trajectory_id,
            split=split,
        )
        return await self._call(attempt, trajectory_id)

    def for_evaluation(self) -> EvaluationView:
        """The same servers and connections under the limits of evaluation, which training cannot
        use up.
        """
        return EvaluationView(self)

    def raise_concurrency(self, requests: int) -> None:
        """See `PolicyClient.raise_concurrency`. Raises the limits of training and of evaluation."""
        for server in self._servers:
            server.raise_concurrency(requests)

    def weigh(self, weight: float) -> None:
        """Use this share of every server's concurrency from now on, both ways at once: other environments use the
        rest.
        """
        for server in self._servers:
            server.weigh(weight)

    def stats(self) -> tuple[ServerStats, ...]:
        """Counters and gauges of each server now."""
        return tuple(server.stats() for server in self._servers)

    async def close(self) -> None:
        """Stop watching and close every connection. Calls under way fail. Idempotent."""
        watchers, self._watchers = self._watchers, []
        self._started = False
        self._some_healthy.set()  # whoever waits for a server to come back sees the end instead
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self._servers))

    # Calls

    async def _call(self, attempt: Callable[[EngineServer], Awaitable[T]], trajectory_id: str) -> T:
        if not self._started:
            raise NotStartedError("the policy was used before its start()")
        try:
            async with asyncio.timeout(self._deadline) as deadline:
                return await self._persist(attempt, partial(self._choose, trajectory_id))
        except TimeoutError:
            if not deadline.expired():
                raise
            raise PolicyTimeoutError(
                f"no completion within {self._deadline:g} s, retries included"
            ) from None

    async def _persist(
        self,
        attempt: Callable[[EngineServer], Awaitable[T]],
        choose: Callable[[EngineServer | None], Awaitable[EngineServer]],
    ) -> T:
        failures = 0
        failed: EngineServer | None = None
        while True:
            server = await choose(failed)
            try:
                return await attempt(server)
            except _TakenOutError:
                continue
            except (EngineFaultError, TokensUnavailableError) as error:
                failures += 1
                failed = server
                delay = self._after(server, error, failures)
            await asyncio.sleep(delay)

    def _after(
        self, server: EngineServer, error: EngineFaultError | TokensUnavailableError, failures: int
    ) -> float:
        """Judge the server by its failure; the seconds to wait before the next attempt, or raise
        if that was the last.
        """
        if server.is_failing(error):
            self._take_out(server, error)
        logger.debug("attempt %d at %s failed: %s", failures, server.url, error)
        if failures >= self._retry.max_attempts:
            raise type(error)(f"gave up after {failures} attempts; the last: {error}") from error
        retry_after = error.retry_after if isinstance(error, EngineFaultError) else None
        return self._retry.delay(failures, retry_after, self._jitter)

    async def _choose(self, trajectory_id: str, failed: EngineServer | None) -> EngineServer:
        healthy = await self._healthy()
        home = self._homes.get(trajectory_id)
        if home is not None and home.healthy and home is not failed:
            self._homes.move_to_end(trajectory_id)
            return home
        others = [server for server in healthy if server is not failed] or healthy
        least = min(server.load for server in others)
        chosen = self._jitter.choice([server for server in others if server.load == least])
        if home is None or not home.healthy:
            self._remember(trajectory_id, chosen)
        return chosen

    def _remember(self, trajectory_id: str, server: EngineServer) -> None:
        self._homes[trajectory_id] = server
        self._homes.move_to_end(trajectory_id)
        if len(self._homes) > _REMEMBERED_TRAJECTORIES:
            self._homes.popitem(last=False)

    async def _healthy(self) -> list[EngineServer]:
        try:
            async with asyncio.timeout(self._retry.max_outage):
                await self._some_healthy.wait()
        except TimeoutError:
            urls = ", ".join(server.url for server in self._servers)
            raise EngineFaultError(
                f"no inference server has answered for {self._retry.max_outage:g} s: {urls}",
                kind="unreachable",
            ) from None
        if not self._started:
            raise PolicyError("the policy was closed while the call was under way")
        return [server for server in self._servers if server.healthy]

    # Health

    async def _watch(self, server: EngineServer) -> None:
        interval = server.config.health_interval
        while True:
            await asyncio.sleep(interval if server.healthy else min(interval, _PROBE_WHILE_OUT))
            if not server.config.health_check:
                self._bring_back(server)
            elif await server.alive():
                server.answered_probe()
                self._bring_back(server)
            elif server.missed_probe():
                self._take_out(
                    server, PolicyError(f"its {server.config.health_path} does not answer")
                )

    def _take_out(self, server: EngineServer, error: Exception) -> None:
        if server.take_out(_TakenOutError(server.url)):
            logger.warning("inference server %s is out: %s", server.url, error)
        if not any(other.healthy for other in self._servers):
            self._some_healthy.clear()

    def _bring_back(self, server: EngineServer) -> None:
        if not server.healthy:
            server.bring_back()
            logger.warning("inference server %s is back", server.url)
        self._some_healthy.set()

    # Start

    async def _check_all(self) -> None:
        checks = (self._check(server) for server in self._servers)
        problems = await asyncio.gather(*checks)
        found = {
            server: problem
            for server, problem in zip(self._servers, problems, strict=True)
            if problem
        }
        for problem in found.values():
            if isinstance(problem, TokensUnavailableError | PolicyRequestError):
                raise problem
        if len(found) == len(self._servers):
            raise PolicyError(
                "no inference server can be used: " + "; ".join(map(str, found.values()))
            )
        for server, problem in found.items():
            self._take_out(server, problem)

    async def _check(self, server: EngineServer) -> Exception | None:
        try:
            async with asyncio.timeout(server.config.startup_timeout):
                while not await server.alive():  # noqa: ASYNC110 - nothing tells; it must be asked
                    await asyncio.sleep(min(server.config.health_interval, _PROBE_WHILE_OUT))
        except TimeoutError:
            return PolicyError(
                f"{server.url} did not answer within {server.config.startup_timeout:g} s"
            )
        try:
            await self._check_answers(server)
        except (PolicyError, ContextLengthError) as error:
            return error
        return None

    async def _check_answers(self, server: EngineServer) -> None:
        if not server.returns_tokens:
            return
        params = SamplingParams(max_tokens=1)
        for failures in range(1, self._retry.max_attempts + 1):
            try:
                await server.generate(
                    _CHECK_PROMPT, params, trajectory_id=CHECK_TRAJECTORY, split=Split.TRAIN
                )
            except EngineFaultError as error:
                await asyncio.sleep(self._after(server, error, failures))
            else:
                self._bring_back(server)
                return


class EvaluationView:
    """A `PolicyClient` over a router that counts against the limits of evaluation. Its owner
    starts and closes it.
    """

    def __init__(self, router: PolicyRouter) -> None:
        self._router = router
        self.returns_tokens = router.returns_tokens
        self.takes_images = router.takes_images

    async def start(self) -> None:
        """Does nothing: the router's owner starts it."""

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str
    ) -> Completion:
        """See `PolicyClient.generate`."""
        return await self._router.generate(
            prompt_ids, params, trajectory_id=trajectory_id, split=Split.EVAL
        )

    async def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams, *, trajectory_id: str
    ) -> ChatCompletion:
        """See `PolicyClient.chat`."""
        return await self._router.chat(
            messages, params, trajectory_id=trajectory_id, split=Split.EVAL
        )

    def raise_concurrency(self, requests: int) -> None:
        """See `PolicyClient.raise_concurrency`."""
        self._router.raise_concurrency(requests)

    async def close(self) -> None:
        """Does nothing: the router's owner closes it."""
