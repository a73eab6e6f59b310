"""Our calls to a cluster's HTTP API: never blocking, each with a deadline, each failure an error of its own kind.

python-nomad is not used for them: it is synchronous, returns bodies without the index that a blocking read needs, has
no call to scale, and raises one error for all of 5xx, 429 and a refused connection.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp

from agentenv_backends.errors import BackendConfigError
from agentenv_backends.nomad.errors import (
    NomadAnswerError,
    NomadDeniedError,
    NomadError,
    NomadNotFoundError,
    NomadRefusedError,
    NomadServerError,
    NomadUnreachableError,
    ScalingBlockedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_backends.config import NomadConfig

CALL_S = 10.0
"""Deadline of a call, beyond what it is told to wait."""
_CONNECT_S = 5.0
_CLOSE_S = 2.0
_WAIT_JITTER = 1 / 16
"""The server may wait this much longer than it was told to."""
_CONNECTIONS = 16
_LONGEST_REASON = 500
_BLOCKED = "scaling blocked due to active deployment"
_CAPABILITIES = "submit-job, scale-job and read-job in the namespace"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a read gave."""

    value: Any
    index: int
    """Of the state it was read from; 0: not told."""
    time: float
    """By the server's clock, in seconds since the epoch; 0: not told."""


class NomadApi:
    """A client of one cluster. Making one contacts nobody; it belongs to the running event loop."""

    def __init__(self, config: NomadConfig) -> None:
        self.url = _without_user(config.url)
        """The cluster's address, as it may be told."""
        self._base = f"{config.url}/v1"
        self.calls = 0
        """Requests sent so far."""
        self._token = _setting(config.token, "NOMAD_TOKEN")
        self._query = {
            name: value
            for name, value in (
                ("namespace", _setting(config.namespace, "NOMAD_NAMESPACE")),
                ("region", _setting(config.region, "NOMAD_REGION")),
            )
            if value
        }
        self._server_name = _setting(config.tls_server_name, "NOMAD_TLS_SERVER_NAME") or None
        headers = {"X-Nomad-Token": self._token} if self._token else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=_tls(config)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        )

    async def close(self) -> None:
        """Let go of its connections. Idempotent."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._session.close()
        except TimeoutError:
            return

    async def read(self, path: str, **query: str) -> Answer:
        """`GET`. Raises `NomadError`."""
        return await self._call("GET", path, query, None, CALL_S)

    async def follow(self, path: str, index: int, wait_s: float, **query: str) -> Answer:
        """`GET` what comes after `index`: blocks until there is something, or for `wait_s`. Raises `NomadError`.

        That it returns proves no change. An index below the one given means that the cluster's state was replaced.
        """
        query |= {"index": str(index), "wait": f"{wait_s * 1000:.0f}ms"}
        return await self._call("GET", path, query, None, wait_s * (1 + _WAIT_JITTER) + CALL_S)

    async def write(self, path: str, body: Mapping[str, Any] | None = None, **query: str) -> Any:
        """`POST`. Raises `NomadError`; whether it was done is not known when no answer came."""
        return (await self._call("POST", path, query, body or {}, CALL_S)).value

    async def delete(self, path: str, **query: str) -> Any:
        """`DELETE`. Raises `NomadError`."""
        return (await self._call("DELETE", path, query, None, CALL_S)).value

    # --- every call --------------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        limit_s: float,
    ) -> Answer:
        what = f"{method} {path}"
        self.calls += 1
        try:
            async with (
                asyncio.timeout(limit_s),
                self._session.request(
                    method,
                    f"{self._base}/{path}",
                    params={**self._query, **query},
                    json=body,
                    server_hostname=self._server_name,
                ) as answer,
            ):
                if answer.status != 200:
                    raise self._error(what, answer.status, await answer.text(errors="replace"))
                return _answer(await answer.json(content_type=None), answer.headers)
        except TimeoutError as error:
            message = f"{self.url} gave no answer to {what} within {limit_s:g} s"
            raise NomadUnreachableError(message, transient=True) from error
        except (aiohttp.ClientPayloadError, ValueError) as error:
            message = f"{self.url}: the answer to {what} makes no sense ({error!r})"
            raise NomadAnswerError(message, transient=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise NomadUnreachableError(
                f"{self.url} cannot be reached ({error}): is a Nomad agent listening there, and is it `address` "
                "(NOMAD_ADDR) that names another one?",
                transient=True,
            ) from error

    def _error(self, what: str, status: int, text: str) -> NomadError:
        reason = " ".join(text.split())[:_LONGEST_REASON] or f"status {status}"
        message = f"{self.url} did not do {what}: {reason}"
        if status in (401, 403):
            which = "token (NOMAD_TOKEN) is not accepted" if self._token else "no token was given"
            return NomadDeniedError(f"{message}: {which}; it needs {_CAPABILITIES}", status=status)
        if status == 404:
            return NomadNotFoundError(message, status=status)
        if status >= 500 or status == 429:
            return NomadServerError(message, status=status, transient=True)
        if _BLOCKED in text:
            return ScalingBlockedError(message, status=status, transient=True)
        return NomadRefusedError(message, status=status)


def _answer(value: Any, headers: Mapping[str, str]) -> Answer:
    date = headers.get("Date")
    time = parsedate_to_datetime(date).timestamp() if date else 0.0
    return Answer(value, int(headers.get("X-Nomad-Index", "0")), time)


def _without_user(url: str) -> str:
    """Without the name and password that a proxy before the cluster may want."""
    before, mark, rest = url.partition("://")
    return f"{before}{mark}{rest.rpartition('@')[2]}"


def _setting(configured: Any, variable: str) -> str:
    if configured is None:
        return os.environ.get(variable, "")
    return str(getattr(configured, "get_secret_value", lambda: configured)())


def _tls(config: NomadConfig) -> ssl.SSLContext | bool:
    """How the API's certificate is checked, and who we say we are. Raises `BackendConfigError`."""
    if not config.url.startswith("https://"):
        return True
    ca, cert, key = (
        _setting(configured, variable)
        for configured, variable in (
            (config.ca_cert, "NOMAD_CACERT"),
            (config.client_cert, "NOMAD_CLIENT_CERT"),
            (config.client_key, "NOMAD_CLIENT_KEY"),
        )
    )
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if cert:
            context.load_cert_chain(cert, key or None)
    except OSError as error:  # also what ssl raises
        files = ", ".join(filter(None, (ca, cert, key)))
        raise BackendConfigError(
            f"ca_cert, client_cert, client_key: {files} cannot be used: {error}"
        ) from error
    return context
