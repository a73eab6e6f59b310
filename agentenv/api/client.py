"""Clients of a trajectory server: one for environments, one for trainers.

They send and take the compact binary form where the server is ours, and JSON with gzip where it is Atropos' `run-api`.
Arrays are packed and unpacked in threads. Neither retries: `ApiUnreachableError` means that sending again is safe,
`ApiRefusedError` that it is useless.
"""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import orjson

from agentenv.api.codec import (
    CONTENT_TYPE,
    CodecError,
    decode_message,
    encode_message,
    pack,
    packed_group,
    unpack,
)
from agentenv.api.group import GroupError, WireGroup, scored_group, wire_group
from agentenv.api.registry import EnvRegistration, TrainerRegistration
from agentenv.api.transport import Transport
from agentenv.api.writing import json_pieces
from agentenv.errors import ApiError, ApiRefusedError, UnknownEnvError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentenv.types import ScoredDataGroup

__all__ = [
    "Batch",
    "EnvRegistered",
    "EnvRegistration",
    "EnvStatus",
    "EnvironmentClient",
    "SendResult",
    "TrainerClient",
    "TrainerInfo",
    "TrainerRegistered",
    "TrainerRegistration",
]

T = TypeVar("T")
ArgumentT = TypeVar("ArgumentT")

DEFAULT_TIMEOUT_S = 60.0
_GZIP_LEVEL = 1
_MIN_GZIP_BYTES = 1_024
_UNKNOWN_ENV = (404, 500)
"""How our server and Atropos' answer for an id they do not know."""


@dataclass(frozen=True, slots=True)
class EnvRegistered:
    """What an environment is told when it registers."""

    env_id: int
    wandb_name: str
    checkpoint_dir: str
    starting_step: int
    checkpoint_interval: int
    num_steps: int
    server_id: str | None = None
    """Names the server's data. None: the server has no such thing."""


@dataclass(frozen=True, slots=True)
class TrainerInfo:
    """What the trainer wants. Both are -1 while none has registered."""

    batch_size: int
    """Rows of a batch."""
    max_token_len: int


@dataclass(frozen=True, slots=True)
class EnvStatus:
    """How an environment stands. Queue sizes are in groups of this environment."""

    current_step: int
    queue_size: int
    unallocated_fraction: float
    self_queue_size: int
    max_group_size: int
    env_weight: float
    paused: bool = False
    server_id: str | None = None


@dataclass(frozen=True, slots=True)
class SendResult:
    """What became of groups that were sent. All of them are kept."""

    groups: int
    buffered: int = 0
    """How many wait in a buffer, because their size is not the environment's group size."""
    buffer_rows: int | None = None
    """Rows left in that buffer."""


@dataclass(frozen=True, slots=True)
class TrainerRegistered:
    """What a trainer is told when it registers."""

    uuid: int
    took_effect: bool = True
    """False: an earlier registration is in force, and its settings."""
    current_step: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch for the trainer. `groups` have `batch_size` rows together."""

    groups: tuple[WireGroup, ...]
    batch_id: int | None = None
    """For `acknowledge`. None without a consumer, or from a server without leases."""
    step: int | None = None
    """The step the batch is for."""

    def scored_groups(self) -> list[ScoredDataGroup]:
        """The groups as lists. Slow for long ones."""
        return [scored_group(group) for group in self.groups]


class _Client:
    """What both clients have in common. Use as an async context manager, or `close`."""

    def __init__(
        self, base_url: str, *, token: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self._http = Transport(base_url, token=token, timeout_s=timeout_s)
        self._speaks_binary: bool | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._http.close()

    async def info(self) -> TrainerInfo:
        """What the trainer wants. Raises `ApiError`."""
        answer = await self._http.json("GET", "/info")
        return TrainerInfo(answer["batch_size"], answer["max_token_len"])

    async def wandb_info(self) -> tuple[str | None, str | None]:
        """Group and project at wandb; None while no trainer has registered. Raises `ApiError`."""
        answer = await self._http.json("GET", "/wandb_info")
        return answer["group"], answer["project"]

    async def _binary(self) -> bool:
        """Whether the server takes the binary form. Asked once, and again after registering: it may be another one."""
        if self._speaks_binary is None:
            about = await self._http.json("GET", "/")
            self._speaks_binary = CONTENT_TYPE in about.get("content_types", ())
        return self._speaks_binary


class EnvironmentClient(_Client):
    """What an environment asks of a trajectory server. Every method raises `ApiError`."""

    async def register(self, env: EnvRegistration) -> EnvRegistered | None:
        """Register. None: the trainer has not asked for a batch yet, so come again."""
        self._speaks_binary = None
        body = env.model_dump()
        if env.instance is None:
            del body["instance"]
        answer = await self._http.json("POST", "/register-env", body)
        if answer.get("status") != "success":
            return None
        return EnvRegistered(
            answer["env_id"],
            answer["wandb_name"],
            answer["checkpoint_dir"],
            answer["starting_step"],
            answer["checkpoint_interval"],
            answer["num_steps"],
            answer.get("server_id"),
        )

    async def status(self, env_id: int) -> EnvStatus:
        """How things stand for an environment. Raises `UnknownEnvError` when it has to register again."""
        try:
            answer = await self._http.json("GET", "/status-env", {"env_id": env_id})
        except ApiError as error:
            if getattr(error, "status", 0) in _UNKNOWN_ENV:
                raise UnknownEnvError(f"environment {env_id}: {error}", 404) from error
            raise
        known = EnvStatus.__dataclass_fields__
        return EnvStatus(**{key: value for key, value in answer.items() if key in known})

    async def send(self, groups: Sequence[WireGroup | Mapping[str, Any]]) -> SendResult:
        """Send groups, in one request; they are kept when this returns.

        Groups with a `group_id` may be sent again without being stored twice. Raises `ApiRefusedError` for groups the
        server finds invalid: then none of them is kept.
        """
        if not groups:
            return SendResult(0)
        if await self._binary():
            body, headers = await _in_thread(_binary_body, groups)
        else:
            body, headers = await _in_thread(_json_body, groups)
        answer = await self._http.json("POST", "/scored_data_list", body, headers)
        return SendResult(
            answer.get("groups_processed", len(groups)),
            answer.get("buffered", 0),
            answer.get("last_buffer_size"),
        )

    async def disconnect(self, env_id: int) -> bool:
        """Say goodbye: batches no longer wait for this environment. Whether the server knew it."""
        answer = await self._http.json("POST", "/disconnect-env", {"env_id": env_id})
        return bool(answer.get("status") == "success")


class TrainerClient(_Client):
    """What a trainer asks of a trajectory server. Every method raises `ApiError`.

    With a `consumer` name batches are leased: `batch` returns the same one until it is acknowledged, also after a
    crash of the trainer or the server, and each is acknowledged by one consumer only. Without, a batch is gone once it
    was sent. Atropos' `run-api` knows no leases.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        consumer: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        super().__init__(base_url, token=token, timeout_s=timeout_s)
        self._consumer = consumer

    async def register(self, trainer: TrainerRegistration) -> TrainerRegistered:
        """Register. Only the first trainer since the server's data began, or a reset, sets the settings."""
        self._speaks_binary = None
        answer = await self._http.json("POST", "/register", trainer.model_dump())
        return TrainerRegistered(
            answer["uuid"], answer.get("took_effect", True), answer.get("current_step")
        )

    async def batch(self) -> Batch | None:
        """The next batch, or None while there is none. The first call lets environments register."""
        binary = await self._binary()
        headers = {"Accept": CONTENT_TYPE if binary else "application/json"}
        query = {"consumer": self._consumer} if self._consumer is not None and binary else {}
        kind, body = await self._http.bytes("GET", "/batch", headers=headers, query=query)
        if kind == CONTENT_TYPE:
            return await _in_thread(_read_binary_batch, body)
        return await _in_thread(_read_json_batch, body)

    async def acknowledge(self, batch_id: int) -> None:
        """The batch is trained on, and what came of it is safe. May be repeated.

        Raises `ApiRefusedError` with status 409 when the lease had ended and another consumer has the batch.
        """
        body = {"batch_id": batch_id, "consumer": self._consumer}
        await self._http.json("POST", "/batch/acknowledge", body)

    async def status(self) -> dict[str, Any]:
        """What the server tells of itself: `current_step` and `queue_size` at least. Raises `ApiError`."""
        return await self._http.json("GET", "/status")

    async def pause(self) -> None:
        """Tell environments to start nothing new: weights are being exchanged.

        Ends with `resume`, or by itself after the server's lease (ten minutes): call it again to go on longer.
        """
        await self._http.json("POST", "/pause", {})

    async def resume(self) -> None:
        """Let environments go on."""
        await self._http.json("POST", "/resume", {})

    async def reset(self) -> None:
        """Make the server forget all groups and registrations."""
        await self._http.bytes("GET", "/reset_data")


# ---- bodies: in threads ----


async def _in_thread(work: Callable[[ArgumentT], T], argument: ArgumentT) -> T:
    try:
        return await asyncio.to_thread(work, argument)
    except GroupError as error:
        raise ApiRefusedError(f"a group cannot be sent: {error}") from error
    except CodecError as error:
        raise ApiError(f"the server sent what cannot be read: {error}") from error


def _arrays(groups: Sequence[WireGroup | Mapping[str, Any]]) -> list[WireGroup]:
    return [group if isinstance(group, WireGroup) else wire_group(group) for group in groups]


def _binary_body(groups: Sequence[WireGroup | Mapping[str, Any]]) -> tuple[bytes, dict[str, str]]:
    packed = [pack(group) for group in _arrays(groups)]
    return encode_message(packed), {"Content-Type": CONTENT_TYPE}


def _json_body(groups: Sequence[WireGroup | Mapping[str, Any]]) -> tuple[bytes, dict[str, str]]:
    texts = [b"".join(json_pieces(group)) for group in _arrays(groups)]
    body = b"[" + b",".join(texts) + b"]"
    headers = {"Content-Type": "application/json"}
    if len(body) >= _MIN_GZIP_BYTES:
        body = gzip.compress(body, _GZIP_LEVEL)
        headers["Content-Encoding"] = "gzip"
    return body, headers


def _read_binary_batch(body: bytes) -> Batch:
    about, frames = decode_message(body)
    groups = tuple(unpack(packed_group(head, packed)) for head, packed in frames)
    return Batch(groups, about.get("batch_id"), about.get("step"))


def _read_json_batch(body: bytes) -> Batch | None:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise CodecError(f"a batch is no JSON: {error}") from None
    if answer.get("status") == "error":
        raise ApiRefusedError(str(answer.get("message")))
    if answer.get("batch") is None:
        return None
    groups = tuple(wire_group(group) for group in answer["batch"])
    return Batch(groups, answer.get("batch_id"), answer.get("step"))
