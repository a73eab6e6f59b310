"""What killed hosts leave on this machine is found by its owner's name, and nothing of live ones is touched."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentenv_backends import cleanup
from agentenv_backends.cleanup import BACKENDS, Swept, clean_up
from agentenv_backends.errors import BackendConfigError, EngineError
from agentenv_backends.host import Leftover
from agentenv_backends.sandboxd import leftovers
from agentenv_backends.sandboxd.packing import write_zipapp
from agentenv_backends.sandboxd.slot_processes import descendants_of
from agentenv_backends.testing import FakeProvider
from tests.agentenv_backends.sandboxd.harness import all_gone, launch, owner, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone, also for the servers that it starts."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def bystander(temporary: Path) -> Iterator[None]:
    """A process at home in the folder that holds the hosts' folders, but in none of those."""
    process = subprocess.Popen(["sleep", "1000"], env={"HOME": str(temporary)})
    yield
    survived = process.poll() is None
    process.kill()
    process.wait()
    assert survived


def _dead() -> leftovers.Owner:
    process = subprocess.Popen(["sleep", "60"])
    found = leftovers.Owner(process.pid, leftovers.start_time(process.pid) or 0)
    process.kill()
    process.wait()
    return found


async def _swept(temporary: Path, *, remove: bool = True) -> list[Leftover]:
    """What was found by a sweep, without control groups: other tests may be leaving some this very moment."""
    (swept,) = await clean_up(["local"], remove=remove)
    assert not swept.skipped
    return [thing for thing in swept.leftovers if thing.kind != "cgroup"]


async def test_a_dry_run_shows_what_a_real_one_removes(temporary: Path) -> None:
    dead = _dead()
    left = temporary / leftovers.name_for("run-h1", dead, "slots")
    (left / "1" / "workspace").mkdir(parents=True)
    found = Leftover("folder", str(left), f"process {dead.pid} of run run-h1", removed=False)
    assert await _swept(temporary, remove=False) == [found]
    assert left.exists()
    assert await _swept(temporary) == [replace(found, removed=True)]
    assert not left.exists()
    assert await _swept(temporary) == []


async def test_what_lives_or_may_live_in_another_container_is_left_alone(temporary: Path) -> None:
    me = leftovers.owner_of_this_process()
    elsewhere = leftovers.Owner(me.pid, 1, namespace=me.namespace + 1)
    for name in (
        leftovers.name_for("run", me, "slots"),
        leftovers.name_for("run", elsewhere, "slots"),
        "agentenv-mine",
    ):
        (temporary / name).mkdir()
    assert await _swept(temporary) == []
    assert len(list(temporary.iterdir())) == 3


@pytest.mark.sandbox
async def test_processes_that_outlived_their_server_and_its_inits_are_ended(
    temporary: Path, tmp_path_factory: pytest.TempPathFactory, bystander: object
) -> None:
    pyz = write_zipapp(tmp_path_factory.mktemp("server") / "sandboxd.pyz")
    host = await launch(pyz, isolation="none")
    await host.connection.open_slot("a")
    task = asyncio.create_task(host.run("setsid sleep 1000 & sleep 1000 & sleep 1000"))
    assert await until(lambda: len(host.family()) >= 6)
    # The other child of the server is what slots are copies of: it ends with the server.
    init = next(pid for pid in descendants_of(host.process.pid) if descendants_of(pid))
    orphans = [owner(pid) for pid in descendants_of(init)]
    assert await _swept(temporary) == [], "they are a live host's"
    os.kill(host.process.pid, signal.SIGSTOP)
    os.kill(init, signal.SIGKILL)
    host.process.kill()
    host.process.wait()
    await asyncio.gather(task, return_exceptions=True)
    assert all(orphan.is_alive() for orphan in orphans)
    swept = await _swept(temporary)
    assert sorted(thing.kind for thing in swept) == ["folder", *["process"] * len(orphans)]
    assert all(thing.removed for thing in swept)
    assert await all_gone(orphans)
    assert not list(temporary.iterdir())


async def test_a_backend_that_is_not_there_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoEngine(FakeProvider):
        async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
            raise EngineError("the engine does not answer")

    monkeypatch.setitem(cleanup._PROVIDERS, "docker", NoEngine)
    monkeypatch.setitem(cleanup._PROVIDERS, "local", FakeProvider)
    for name in ("nomad", "modal"):
        monkeypatch.delitem(cleanup._PROVIDERS, name)
    assert await clean_up() == [
        Swept("local"),
        Swept("docker", skipped="the engine does not answer"),
    ]


async def test_what_is_kept_for_later_runs_goes_only_when_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Keeping(FakeProvider):
        async def clear_cache(self, *, remove: bool = True) -> tuple[Leftover, ...]:
            return (Leftover("image", "kept", "kept for later runs", removed=remove),)

    monkeypatch.setitem(cleanup._PROVIDERS, "docker", Keeping)
    assert await clean_up(["docker"]) == [Swept("docker")]
    (swept,) = await clean_up(["docker"], images=True)
    assert swept.leftovers == (Leftover("image", "kept", "kept for later runs", removed=True),)


async def test_without_its_library_the_docker_backend_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("agentenv_backends.docker.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiodocker", None)
    (swept,) = await clean_up(["docker"])
    assert "pip install 'agentenv[docker]'" in swept.skipped


async def test_a_name_that_is_none_is_refused() -> None:
    assert BACKENDS == ("local", "docker", "nomad", "modal")
    with pytest.raises(BackendConfigError, match=r"submarine.*there is: local, docker"):
        await clean_up(["submarine"])
