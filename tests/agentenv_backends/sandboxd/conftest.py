from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from agentenv_backends.sandboxd.packing import write_zipapp
from agentenv_backends.sandboxd.slot_files import Workspace
from tests.agentenv_backends.sandboxd.harness import RunningHost, launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator


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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for a workspace, with something to be kept from it beside it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    """What file operations of a slot work on, in this process. A test that leaks descriptors fails."""
    workspace = Workspace(str(root))
    before = _open_descriptors()
    yield workspace
    assert _open_descriptors() == before, "descriptors leaked"
    os.close(workspace.fd)


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
