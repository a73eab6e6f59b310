"""One inference server over HTTP: one attempt at a time, checked, counted, limited. Retries are
the router's.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp

from agentenv.errors import (
    ContextLengthError,
    PolicyError,
    PolicyRequestError,
    TokensUnavailableError,
)
from agentenv.policy import wire
from agentenv.policy.faults import EngineFaultError, EngineTimeoutError, error_for_status, excerpt
from agentenv.policy.limiter import Limiter
from agentenv.run.masking import mask_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.policy.base import ChatCompletion, Completion, SamplingParams
    from agentenv.policy.config import APIServerConfig

TRAJECTORY_HEADER = "x-trajectory-id"
"""Names the trajectory, so that a gateway in between can be sticky too. Engines ignore it."""
MAX_REPLY_BYTES = 256 * 1024 * 1024
"""A larger reply is refused instead of being held in memory."""
FAULTS_UNTIL_OUT = 5
"""Attempts in a row that may fail before a server that is reachable is taken out."""
PROBES_UNTIL_OUT = 2
"""Health probes in a row that may fail before a server is taken out."""
_NOT_THE_SERVERS_FAULT = frozenset({"http_429"})
_CONNECT_TIMEOUT = 10.0
_KEEP_ALIVE = 4.0  # the common servers close after 5 s: a connection used again is a live one


class Split(StrEnum):
    """Whose limit a request counts against."""

    TRAIN = "train"
    EVAL = "eval"


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A server as it is at one moment. The gauges are 0 when no call is under way."""

    url: str
    healthy: bool
    in_use: dict[str, int]
    """Permits held, by split."""
    waiting: dict[str, int]
    """Calls waiting for a permit, by split."""
    capacity: dict[str, int]
    completions: int
    """Attempts that succeeded."""
    refused: int
    """Attempts answered with an error that a retry would not help."""
    faults: dict[str, int]
    """Attempts that failed, by kind."""
    times_out: int
    """How often the server was taken out."""
    tokens: int
    """Tokens sampled."""
    seconds: float
    """Time of the attempts that succeeded, summed."""
    recent: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Seconds of the last `rolling_buffer_length` attempts that succeeded, by split."""


class EngineServer:
    """A client of one server. `generate` and `chat` are one attempt each, under one permit of
    their split.
    """

    def __init__(self, config: APIServerConfig, *, vocab_size: int | None = None) -> None:
        self.config = config
        self.url: str = mask_secrets(config.root_url)
        """For messages and statistics: without a user or password in it."""
        self._root = config.root_url
        self.healthy = True
        self._vocab_size = vocab_size
        self._dialect = dialect_of(config)
        self._limits = {
            Split.TRAIN: Limiter(config.num_max_requests_at_once),
            Split.EVAL: Limiter(config.num_requests_for_eval),
        }
        kept = max(1, config.rolling_buffer_length)
        self._recent = {split: deque[float](maxlen=kept) for split in Split}
        self._session: aiohttp.ClientSession | None = None
        self._faults: Counter[str] = Counter()
        self._faults_in_row = self._missed_probes = 0
        self._completions = self._refused = self._tokens = self._times_out = 0
        self._seconds = 0.0

    @property
    def returns_tokens(self) -> bool:
        """Whether this kind of server can be trained on."""
        return self._dialect is not None

    @property
    def load(self) -> float:
        """Calls held or waiting, of both splits, against what it may serve at once."""
        calls = sum(limit.in_use + limit.waiting for limit in self._limits.values())
        return calls / self._limits[Split.TRAIN].capacity

    def raise_concurrency(self, requests: int) -> None:
        """Allow at least `requests` at once in each split."""
        for limit in self._limits.values():
            limit.raise_to(requests)

    def weigh(self, weight: float) -> None:
        """Use this share of what may be under way at once, in each split. See `Limiter.weigh`."""
        for limit in self._limits.values():
            limit.weigh(weight)

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str, split: Split
    ) -> Completion:
        """Sample once. Raises `EngineFaultError` where another attempt may help, else what
        `PolicyClient` says.
        """
        dialect = self._dialect
        if dialect is None:
            raise TokensUnavailableError(
                f"{self.url} is of server_type openai, whose replies carry no token ids: it is for "
                "evaluation only; for training serve the model with vllm, sglang or transformers"
            )
        body = dialect.body(self.config.model_name, prompt_ids, self._params(params))
        async with self._limits[split].permit(), _Counted(self, split):
            reply, version = await self._post(dialect.path, body, trajectory_id)
            completion = wire.read_completion(dialect, reply, params, vocab_size=self._vocab_size)
            self._tokens += len(completion.token_ids)
        return completion if version is None else replace(completion, policy_version=version)

    async def chat(
        self,
        messages: Sequence[dict[str, Any]],
        params: SamplingParams,
        *,
        trajectory_id: str,
        split: Split,
    ) -> ChatCompletion:
        """One reply as text. Raises as `generate` does."""
        by_openai = urlsplit(self._root).hostname == "api.openai.com"
        body = wire.chat_body(
            self.config.model_name,
            messages,
            self._params(params),
            limit_field="max_completion_tokens" if by_openai else "max_tokens",
            stop_token_ids=self.returns_tokens,
        )
        async with self._limits[split].permit(), _Counted(self, split):
            reply, _ = await self._post("/v1/chat/completions", body, trajectory_id)
            completion = wire.read_chat(reply)
            self._tokens += completion.completion_tokens
        return completion

    async def alive(self) -> bool:
        """Whether the server answers its health route. Costs no generation.

        A status that only says the route is unknown or closed counts as alive: something answered.
        """
        try:
            async with (
                asyncio.timeout(self.config.health_timeout),
                self._open().get(
                    self._root + self.config.health_path, allow_redirects=False
                ) as reply,
            ):
                return reply.status < 500
        except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
            return False

    def take_out(self, reason: Exception) -> bool:
        """Send no new calls here; calls that wait for a permit fail with `reason`. False if it was
        out already.
        """
        for limit in self._limits.values():
            limit.refuse_waiters(reason)
        if not self.healthy:
            return False
        self.healthy = False
        self._times_out += 1
        return True

    def bring_back(self) -> None:
        """Send calls here again."""
        self.healthy = True
        self._faults_in_row = self._missed_probes = 0

    def is_failing(self, fault: PolicyError) -> bool:
        """Whether `fault`, just counted, is reason enough to take the server out."""
        if isinstance(fault, EngineFaultError) and fault.kind == "unreachable":
            return True
        return self._faults_in_row >= FAULTS_UNTIL_OUT

    def missed_probe(self) -> bool:
        """Count a failed health probe; whether that makes enough of them."""
        self._missed_probes += 1
        return self._missed_probes >= PROBES_UNTIL_OUT

    def answered_probe(self) -> None:
        """Start counting failed health probes anew."""
        self._missed_probes = 0

    def stats(self) -> ServerStats:
        """The counters and gauges now."""
        return ServerStats(
            url=self.url,
            healthy=self.healthy,
            in_use={split.value: limit.in_use for split, limit in self._limits.items()},
            waiting={split.value: limit.waiting for split, limit in self._limits.items()},
            capacity={split.value: limit.capacity for split, limit in self._limits.items()},
            completions=self._completions,
            refused=self._refused,
            faults=dict(self._faults),
            times_out=self._times_out,
            tokens=self._tokens,
            seconds=self._seconds,
            recent={split.value: tuple(seconds) for split, seconds in self._recent.items()},
        )

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _params(self, params: SamplingParams) -> SamplingParams:
        return params if self.config.send_seed else replace(params, seed=None)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            key = self.config.api_key.get_secret_value()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
                headers={"Authorization": f"Bearer {key}"} if key else {},
            )
        return self._session

    async def _post(self, path: str, body: wire.Json, trajectory_id: str) -> tuple[Any, str | None]:
        """The reply's JSON and the weights' version its header names."""
        where = self.url + path
        try:
            async with asyncio.timeout(self.config.attempt_timeout):
                status, headers, raw = await self._exchange(path, body, trajectory_id)
        except TimeoutError:
            raise EngineTimeoutError(
                f"{where} gave no answer within {self.config.attempt_timeout:g} s", kind="timeout"
            ) from None
        except aiohttp.ClientConnectorError as error:
            raise EngineFaultError(
                f"cannot connect to {where}: {error}", kind="unreachable"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineFaultError(
                f"the connection to {where} broke: {type(error).__name__}: {error}",
                kind="disconnected",
            ) from error
        if status != 200:
            raise error_for_status(where, status, raw, headers.get("retry-after"))
        try:
            return json.loads(raw), headers.get(self.config.policy_version_header)
        except (ValueError, RecursionError) as error:
            raise EngineFaultError(f"{where} answered 200 with no JSON: {excerpt(raw)}") from error

    async def _exchange(
        self, path: str, body: wire.Json, trajectory_id: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {TRAJECTORY_HEADER: quote(trajectory_id, safe="")}
        async with self._open().post(
            self._root + path, json=body, headers=headers, allow_redirects=False
        ) as reply:
            raw = bytearray()
            async for chunk in reply.content.iter_any():
                raw += chunk
                if len(raw) > MAX_REPLY_BYTES:
                    raise EngineFaultError(
                        f"{self.url}{path} answered with more than {MAX_REPLY_BYTES} bytes"
                    )
            return reply.status, reply.headers, bytes(raw)

    def _succeeded(self, seconds: float, split: Split) -> None:
        self._recent[split].append(seconds)
        self._completions += 1
        self._seconds += seconds
        self._faults_in_row = 0

    def _failed(self, error: PolicyError) -> None:
        kind = error.kind if isinstance(error, EngineFaultError) else "tokens_unavailable"
        self._faults[kind] += 1
        self._faults_in_row += kind not in _NOT_THE_SERVERS_FAULT

    def _declined(self) -> None:
        self._refused += 1
        self._faults_in_row = 0


class _Counted:
    """Counts one attempt of a server by how the block ends. A cancelled one counts as neither."""

    def __init__(self, server: EngineServer, split: Split) -> None:
        self._server = server
        self._split = split
        self._begun = 0.0

    async def __aenter__(self) -> None:
        self._begun = asyncio.get_running_loop().time()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        server = self._server
        if error is None:
            seconds = asyncio.get_running_loop().time() - self._begun
            server._succeeded(seconds, self._split)  # noqa: SLF001 - one unit
        elif isinstance(error, PolicyRequestError | ContextLengthError):
            server._declined()  # noqa: SLF001 - one unit
        elif isinstance(error, PolicyError):
            server._failed(error)  # noqa: SLF001 - one unit


def dialect_of(config: APIServerConfig) -> wire.Dialect | None:
    """How to ask this server for tokens; None where it has none to give."""
    match config.server_type, config.api:
        case "vllm", "completions":
            return wire.VLLMCompletions()
        case "vllm", "generate":
            return wire.VLLMGenerate()
        case "vllm", "legacy_generate":
            return wire.LegacyGenerate()
        case "sglang", _:
            return wire.SGLangGenerate()
    return None
