"""Whether backends that are somewhere else can be used from here: what that needs, and whether they answer."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING

from agentenv_backends._findings import InForce, Protection
from agentenv_backends.config import NomadConfig
from agentenv_backends.config.pool import needs_extra
from agentenv_backends.errors import BackendError, BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agentenv_backends.modal.service import Service
    from agentenv_backends.nomad.api import NomadApi

_ANSWER_S = 15.0
_OR_WITHOUT = "or do without the {} backend"
_NO_CLUSTER = f"set NOMAD_ADDR to a cluster's address, {_OR_WITHOUT.format('nomad')}"
_NO_JOBS = "set NOMAD_TOKEN to a token with submit-job, scale-job and read-job in NOMAD_NAMESPACE"
_NO_TOKEN = (
    "run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, "
    + _OR_WITHOUT.format("modal")
)
_NO_MODAL = f"look at the network, at proxies and at the token, {_OR_WITHOUT.format('modal')}"


async def examine_nomad(config: NomadConfig | None = None) -> list[Protection]:
    """Ask a cluster (None: the one that NOMAD_ADDR names) whether it works and takes our token. Starts nothing.

    What is not as it should be says why and what to do; nothing is raised for that.
    """
    from agentenv_backends.nomad.api import NomadApi  # noqa: PLC0415 - when needed

    name = "the cluster can be reached"
    try:
        api = NomadApi(config or NomadConfig())
    except BackendError as error:  # a certificate that cannot be read
        return [Protection(name, InForce.NO, str(error), _NO_CLUSTER)]
    try:
        reached = await _finding(name, _leader(api), _NO_CLUSTER)
        if reached.in_force is InForce.NO:
            return [reached]
        return [reached, await _finding("its jobs can be read", _jobs(api), _NO_JOBS)]
    finally:
        await api.close()


async def _leader(api: NomadApi) -> str:
    leader = (await api.read("status/leader")).value
    if not leader:
        raise BackendUnavailableError(f"the cluster at {api.url} has no leader at present")
    return f"{api.url}, led by {leader}"


async def _jobs(api: NomadApi) -> str:
    await api.read("jobs", per_page="1")
    return "that much is allowed; whether jobs may be registered shows at the start of a run"


async def examine_modal() -> list[Protection]:
    """Look for Modal's client and a token, and ask Modal whether it takes that. Starts nothing, and tells no secret.

    What is not as it should be says why and what to do; nothing is raised for that.
    """
    installed = "Modal's client is installed"
    try:
        from agentenv_backends.modal.service import Service, has_token  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        return [Protection(installed, InForce.NO, str(needs_extra("modal", error.name)))]
    except BackendError as error:
        return [Protection(installed, InForce.NO, str(error))]
    found = [Protection(installed, InForce.YES, f"version {version('modal')}")]
    token = "a token is configured"  # noqa: S105 - what is found out about one
    if not has_token():
        return [*found, Protection(token, InForce.NO, "no token was found", _NO_TOKEN)]
    found.append(Protection(token, InForce.YES, "in variables, or in the client's file"))
    service = Service()
    try:
        answered = await _finding("Modal takes the token", _opened(service), _NO_MODAL)
        return [*found, answered]
    finally:
        await service.close()


async def _opened(service: Service) -> str:
    from agentenv_backends.modal.service import server_name  # noqa: PLC0415 - an extra

    await service.open()
    return f"{server_name()} answers"


async def _finding(name: str, asking: Coroutine[None, None, str], way_out: str) -> Protection:
    """In force with what the answer tells; where there is none in time, or an error, the reason."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            return Protection(name, InForce.YES, await asking)
    except TimeoutError:
        return Protection(name, InForce.NO, f"no answer within {_ANSWER_S:g} s", way_out)
    except BackendError as error:
        return Protection(name, InForce.NO, str(error), way_out)
