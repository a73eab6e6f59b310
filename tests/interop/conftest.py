"""Tests that take `api` run against Atropos' own server, which shows that they are true, and against ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.interop.api import Api
from tests.interop.servers import AgentEnvServer, AtroposServer, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ATROPOS, AGENTENV = "run-api", "agentenv"
_SERVERS: dict[str, type[ServerProcess]] = {ATROPOS: AtroposServer, AGENTENV: AgentEnvServer}


@pytest.fixture(scope="session", params=[ATROPOS, AGENTENV])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Each server in turn, one process for all tests."""
    if request.param == ATROPOS:
        request.getfixturevalue("atropos")
    with _SERVERS[request.param](tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def api(server: ServerProcess) -> Iterator[Api]:
    """A client of each server, which has forgotten what came before."""
    with Api(server.url) as client:
        client.reset()
        yield client


@pytest.fixture
def fresh_api(
    request: pytest.FixtureRequest, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Api]:
    """A client of each server, newly started: some answers are others than those after a reset."""
    folder = tmp_path_factory.mktemp("fresh")
    with type(server)(folder) as running, Api(running.url) as client:
        yield client


@pytest.fixture(scope="session")
def our_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentEnvServer]:
    """Ours, one process for all tests of what only it does."""
    with AgentEnvServer(tmp_path_factory.mktemp("ours")) as running:
        yield running


@pytest.fixture
def ours(our_server: AgentEnvServer) -> Iterator[Api]:
    """A client of ours, which has forgotten what came before."""
    with Api(our_server.url) as client:
        client.reset()
        yield client


@pytest.fixture
def start_ours(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., AgentEnvServer]]:
    """Starts servers of ours with options; they end with the test."""
    running: list[AgentEnvServer] = []

    def start(*arguments: str) -> AgentEnvServer:
        server = AgentEnvServer(tmp_path_factory.mktemp("ours"), *arguments)
        running.append(server)
        server.start()
        return server

    yield start
    for server in running:
        server.stop()
