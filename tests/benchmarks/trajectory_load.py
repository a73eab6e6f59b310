"""Load for any server that speaks the trajectory API: groups of long sequences as bytes, and a client that does little
but send and receive them, so that what is measured is the server.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import aiohttp
import numpy as np

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

ROWS = 8
"""Sequences of a group."""
_VOCABULARY = 151_000
_CHUNK = 1 << 20
_DEADLINE_S = 170.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
JSON: Mapping[str, str] = {"content-type": "application/json"}


def long_group(tokens: int, *, seed: int = 0, env_id: int | None = None) -> dict[str, Any]:
    """A group as environments send it. Three quarters of each sequence are sampled, the log-probs full doubles."""
    draw = np.random.default_rng(seed)
    prompt = tokens // 4
    ids = draw.integers(0, _VOCABULARY, (ROWS, tokens))
    masks, logprobs = ids.copy(), -draw.exponential(0.5, ids.shape)
    masks[:, :prompt], logprobs[:, :prompt] = -100, 1.0
    group = {
        "tokens": ids.tolist(),
        "masks": masks.tolist(),
        "scores": draw.random(ROWS).tolist(),
        "inference_logprobs": logprobs.tolist(),
    }
    return group if env_id is None else group | {"env_id": env_id}


@dataclass(frozen=True, slots=True)
class Delivery:
    """A batch's way to the trainer."""

    seconds: float
    wire_bytes: int
    worst_info_s: float
    """The longest that GET /info took meanwhile."""


class Loader:
    """One connection, or several, to a server. Raises `RuntimeError` for an answer that is no success."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._http = aiohttp.ClientSession(
            url,
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_DEADLINE_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def start(self, batch_size: int) -> None:
        """An empty server with a trainer that has asked once."""
        await self.bytes_of("GET", "/reset_data")
        await self.json_of(
            "POST",
            "/register",
            wandb_group="benchmark",
            wandb_project="benchmark",
            batch_size=batch_size,
            max_token_len=1 << 20,
            checkpoint_dir="",
            save_checkpoint_interval=0,
            starting_step=0,
            num_steps=1 << 30,
        )
        await self.bytes_of("GET", "/batch")

    async def register_env(self, min_allocation: float | None) -> int:
        """An environment's id."""
        answer = await self.json_of(
            "POST",
            "/register-env",
            max_token_length=1 << 20,
            desired_name="benchmark",
            weight=1.0,
            group_size=ROWS,
            min_batch_allocation=min_allocation,
        )
        return int(answer["env_id"])

    async def fill(self, groups: int, *, env_id: int | None = None, tokens: int = 16) -> None:
        """Queue many short groups."""
        one = json.dumps(long_group(tokens, env_id=env_id)).encode()
        for start in range(0, groups, 100):
            many = b"[" + b",".join([one] * min(100, groups - start)) + b"]"
            await self.bytes_of("POST", "/scored_data_list", many, JSON)

    async def post(self, body: bytes, headers: Mapping[str, str], times: int) -> None:
        """Send `body` so many times."""
        for _ in range(times):
            await self.bytes_of("POST", "/scored_data", body, headers)

    async def rate(
        self, body: bytes, headers: Mapping[str, str], clients: int, seconds: float
    ) -> float:
        """Groups a second that so many clients get rid of, each sending `body` again and again."""
        lines = ["POST /scored_data HTTP/1.1", f"Host: {self._host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
        began = perf_counter()
        done = 0

        async def client() -> None:
            nonlocal done
            async with _connection(self._host, self._port) as (reader, writer):
                while perf_counter() - began < seconds:
                    writer.write(request)
                    await _accepted(reader)
                    done += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        return done / (perf_counter() - began)

    async def timed_batch(self) -> float:
        """Seconds until a small batch is here. Raises when there is none."""
        began = perf_counter()
        body = await self.bytes_of("GET", "/batch")
        took = perf_counter() - began
        if not json.loads(body)["batch"]:
            raise RuntimeError(f"no batch, but {body[:200]!r}")
        return took

    async def delivery(self, headers: Mapping[str, str], at_least: int) -> Delivery:
        """A large batch, while another client keeps asking for GET /info."""
        done = asyncio.Event()
        probe = asyncio.create_task(self._worst_info(done))
        await asyncio.sleep(0.05)
        began = perf_counter()
        size = 0
        async with self._http.get("/batch", headers=headers) as response:
            async for chunk in response.content.iter_chunked(_CHUNK):
                size += len(chunk)
        took = perf_counter() - began
        done.set()
        worst = await probe
        if response.status != 200 or size < at_least:
            raise RuntimeError(f"a batch of {size} bytes, status {response.status}")
        return Delivery(took, size, worst)

    async def _worst_info(self, done: asyncio.Event) -> float:
        worst = 0.0
        while not done.is_set():
            began = perf_counter()
            await self.bytes_of("GET", "/info")
            worst = max(worst, perf_counter() - began)
            await asyncio.sleep(0.005)
        return worst

    async def json_of(self, method: str, path: str, **body: Any) -> Any:
        """What a request with a JSON body is answered."""
        return json.loads(await self.bytes_of(method, path, json.dumps(body).encode(), JSON))

    async def bytes_of(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of a successful answer."""
        plain = {"accept-encoding": "identity", **(headers or {})}
        async with self._http.request(method, path, data=body, headers=plain) as response:
            answer = await response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:500]!r}")
        return answer


@asynccontextmanager
async def _connection(
    host: str, port: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Bare: a client library's own work would be taken for the server's."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def _accepted(reader: asyncio.StreamReader) -> None:
    """Read one answer. Raises `RuntimeError` for one that is no success."""
    async with asyncio.timeout(_DEADLINE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"POST /scored_data: {head[:60]!r} {body[:500]!r}")
