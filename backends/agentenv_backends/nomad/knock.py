"""The driver's side of a host's gate (`sandboxd/gate.py`, which has the protocol): be let in, and send the server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from agentenv_backends.errors import HostStartError
from agentenv_backends.sandboxd.gate import MAX_LINE, VERSION, proof
from agentenv_backends.sandboxd.packing import sandboxd_zipapp

_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_UNACKNOWLEDGED_MS = 20_000
"""What was sent and not acknowledged for so long means that the other end is gone."""


class GateError(HostStartError):
    """A host's gate did not let us in."""


class GateClosedError(GateError):
    """Nothing answers there, or not as a gate does: it may not be listening yet."""


class WrongHostError(GateError):
    """Another host, or none with this run's key, has that address now."""


class TakenError(GateError):
    """Another driver is with that host."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a gate that lets one in says."""

    folder: str
    """Where slots' folders may be made."""
    mapped_ids: int
    """User ids there are: those below."""
    working_dir: str = "/"
    """Where the host was started: in a container, the image's working directory."""


async def knock(
    address: tuple[str, int], key: str, host: str, who: str
) -> tuple[socket.socket, Welcome]:
    """Be let in by the gate of `host` and start the sandbox server, whose stream is returned, to be greeted.

    Raises `GateError`. Bounded by the caller; the socket is closed when it is cancelled.
    """
    stream = None
    try:
        stream = await _connect(address)
        welcome = await _shake_hands(stream, key, host, who)
        program = sandboxd_zipapp()
        await asyncio.get_running_loop().sock_sendall(
            stream, len(program).to_bytes(8, "big") + program
        )
    except BaseException as error:
        if stream is not None:
            stream.close()
        if isinstance(error, OSError | ValueError | KeyError):
            where = "{}:{}".format(*address)
            raise GateClosedError(f"no gate answers at {where}: {error!r}") from error
        raise
    return stream, welcome


async def _connect(address: tuple[str, int]) -> socket.socket:
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, place = (await loop.getaddrinfo(*address, type=socket.SOCK_STREAM))[
        0
    ]
    stream = socket.socket(family, kind, protocol)
    try:
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        await loop.sock_connect(stream, place)
    except BaseException:
        stream.close()
        raise
    return stream


async def _shake_hands(stream: socket.socket, key: str, host: str, who: str) -> Welcome:
    challenge = await _line(stream)
    if challenge.get("gate") != VERSION:
        raise WrongHostError(f"host {host}: what answers there is no gate of this version")
    who = " ".join(who.split())[:500]
    said = {"nonce": secrets.token_hex(32), "host": host, "who": who, "program": _digest()}
    parts = (str(challenge["nonce"]), *said.values())
    said["proof"] = proof(key.encode("ascii"), "driver", *parts)
    line = json.dumps(said).encode("ascii") + b"\n"
    await asyncio.get_running_loop().sock_sendall(stream, line)
    answer = await _line(stream)
    if "refused" in answer:
        kind = TakenError if answer["refused"] == "taken" else WrongHostError
        raise kind(f"host {host} did not let us in: {answer['message']}")
    expected = proof(key.encode("ascii"), "host", *parts)
    if not hmac.compare_digest(expected, str(answer["proof"])):
        raise WrongHostError(f"what answers for host {host} does not have this run's key")
    return Welcome(str(answer["folder"]), int(answer["ids"]), str(answer["directory"]))


async def _line(stream: socket.socket) -> dict[str, Any]:
    """A line of JSON; the gate sends nothing after it before it has heard from us."""
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        piece = await loop.sock_recv(stream, MAX_LINE)
        line += piece
        if not piece or len(line) > MAX_LINE:
            raise ConnectionResetError("the connection ended before a line of it came")
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"no gate says {value!r}")  # noqa: TRY004 - as for any other line that is wrong
    return value


@lru_cache(maxsize=1)
def _digest() -> str:
    return hashlib.sha256(sandboxd_zipapp()).hexdigest()
