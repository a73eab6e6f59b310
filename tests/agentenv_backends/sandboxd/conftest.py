from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from agentenv_backends.sandboxd.packing import write_zipapp
from tests.agentenv_backends.sandboxd.harness import RunningHost, launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zipapp(tmp_path_factory.mktemp("server") / "sandboxd.pyz")


@pytest.fixture
async def start_host(pyz: Path) -> AsyncIterator[Callable[..., Awaitable[RunningHost]]]:
    """Start hosts; all are ended after the test, by force where it failed."""
    hosts: list[RunningHost] = []

    async def start(*slots: str, **settings: Any) -> RunningHost:
        if settings.get("isolation") != "none" and shutil.which("bwrap") is None:
            pytest.skip("bubblewrap is not installed")
        host = await launch(pyz, **settings)
        hosts.append(host)
        for slot in slots:
            await host.connection.open_slot(slot)
        return host

    yield start
    for host in hosts:
        try:
            await host.connection.close()
        finally:
            if host.process.poll() is None:
                host.process.kill()
            host.process.wait()


@pytest.fixture
async def host(start_host: Callable[..., Awaitable[RunningHost]]) -> RunningHost:
    """A host with one slot, `a`."""
    return await start_host("a")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting_host(pyz: Path) -> AsyncIterator[RunningHost]:
    """A host without slots that serves all tests of a module."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    host = await launch(pyz)
    yield host
    await host.connection.close()
