"""A server that an ordinary user starts: no cgroups, no uids to hand out, the same confinement."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.results import ExecStatus
from agentenv_backends.sandboxd.packing import write_zipapp
from tests.agentenv_backends.sandboxd.harness import RunningHost, launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]
NOBODY = 65534


@pytest.fixture
def readable_pyz() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield write_zipapp(path / "sandboxd.pyz")


@pytest.fixture
async def host(readable_pyz: Path) -> AsyncIterator[RunningHost]:
    async with _running(readable_pyz, "a", "b", max_processes=40, memory_mb=256) as host:
        yield host


@asynccontextmanager
async def _running(pyz: Path, *slots: str, **settings: Any) -> AsyncIterator[RunningHost]:
    host = await launch(pyz, "/usr/bin/python3", user=NOBODY, owner_pid=0, **settings)
    try:
        for slot in slots:
            await host.connection.open_slot(slot)
        yield host
        await host.connection.close()
    finally:
        if host.process.poll() is None:
            host.process.kill()
        host.process.wait()


async def test_the_facts_tell_which_means_are_left(host: RunningHost) -> None:
    facts = host.facts
    assert not facts.started_as_root
    assert facts.slot_uids == str(NOBODY)
    assert facts.controllers == ()
    assert facts.memory_limit == "rlimit, each process"
    assert facts.process_limit in ("rlimit, each slot", "")
    assert facts.seccomp
    assert facts.no_capabilities


async def test_processes_are_limited_for_each_slot_though_both_share_a_user(
    host: RunningHost,
) -> None:
    if not host.facts.process_limit:
        pytest.skip("this kernel counts processes by user alone")
    bomb = asyncio.create_task(
        host.run("for i in $(seq 100); do sleep 100 & done; wait", timeout_s=2)
    )
    for _ in range(10):
        assert (await host.run("(echo a | cat) | cat", "b")).stdout.text() == "a\n"
    assert "fork" in (await bomb).stderr.text()
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_memory_is_limited_for_each_process(host: RunningHost) -> None:
    result = await host.run("python3 -c 'x = bytearray(400 << 20)'")
    assert result.status is ExecStatus.EXITED
    assert "MemoryError" in result.stderr.text()


async def test_without_isolation_commands_cannot_look_into_an_init_or_what_it_is_a_copy_of(
    readable_pyz: Path,
) -> None:
    async with _running(readable_pyz, "a", isolation="none") as host:
        for name in ("slot-init", "slot-template"):
            pid = host.the_only(name).pid
            looked = await host.run(f"id -u; ls /proc/{pid}/fd; cat /proc/{pid}/environ")
            assert looked.stdout.text() == f"{NOBODY}\n"
            assert looked.stderr.text().count("Permission denied") == 2
