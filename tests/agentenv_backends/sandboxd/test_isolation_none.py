"""Without isolation: the same operations, on a plain folder, by a process that must harm no other."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.errors import SlotLostError
from agentenv_backends.requests import KillRequest, ListRequest, ReadRequest, WriteRequest
from agentenv_backends.results import ExecStatus, KillResult, ListResult, ReadResult, WriteResult
from tests.agentenv_backends.sandboxd.harness import RunningHost, StartHost, all_gone, until
from tests.agentenv_backends.sandboxd.terminals import shell, tmux, typed
from tests.processes import child

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sandbox


@pytest.fixture
async def plain(start_host: StartHost) -> RunningHost:
    return await start_host("a", isolation="none")


@pytest.fixture
def bystander() -> Iterator[None]:
    with child(["sleep", "1000"], start_new_session=True) as process:
        yield
        assert process.poll() is None, "a process that belongs to nobody's slot was killed"


async def test_it_says_what_it_gives_up(plain: RunningHost) -> None:
    facts = plain.facts
    assert facts.isolation == "none"
    assert not facts.pid_namespace
    assert not facts.seccomp
    assert facts.disk_limit == ""
    assert len(facts.gives_up) >= 4


async def test_commands_run_in_a_folder_of_their_own(plain: RunningHost) -> None:
    workspace = plain.connection.workspace_dir("a")
    assert (
        await plain.run("pwd; echo x > file; echo $HOME")
    ).stdout.text() == f"{workspace}\n{workspace}\n"
    assert await plain.execute(ReadRequest(f"{workspace}/file")) == ReadResult(b"x\n", 2, False)
    assert await plain.execute(WriteRequest("made", b"y")) == WriteResult(1)
    listed = await plain.execute(ListRequest())
    assert isinstance(listed, ListResult)
    assert [entry.path for entry in listed.entries] == ["file", "made"]
    assert await plain.refused(ReadRequest("/etc/passwd")) == "outside_workspace"


@pytest.mark.parametrize(
    "command",
    [
        "sleep 1000 & setsid sleep 1000 & (setsid nohup sleep 1000 >/dev/null 2>&1 &) ; sleep 1000",
        "trap '' TERM HUP; sleep 1000 & kill -STOP $$",
    ],
)
async def test_a_deadline_kills_the_whole_tree_and_nobody_else(
    plain: RunningHost, bystander: object, command: str
) -> None:
    assert (await plain.run(command, timeout_s=0.4)).status is ExecStatus.TIMED_OUT
    assert len(plain.family()) == 2


async def test_background_processes_end_with_their_call_and_bystanders_do_not(
    plain: RunningHost, bystander: object
) -> None:
    result = await plain.run("sleep 1000 & setsid sleep 1000 & echo hi")
    assert result.stdout.text() == "hi\n"
    assert result.killed_processes == 2
    assert len(plain.family()) == 2
    assert await plain.execute(KillRequest()) == KillResult(0)


async def test_one_slots_end_does_not_touch_the_other(
    start_host: StartHost, bystander: object
) -> None:
    host = await start_host("a", "b", isolation="none")
    task = asyncio.create_task(host.run("sleep 0.5; echo done", "b"))
    await host.run("sleep 1000 & true", "a")
    await host.connection.close_slot("a")
    assert (await task).stdout.text() == "done\n"


async def test_a_fork_bomb_is_stopped(start_host: StartHost, bystander: object) -> None:
    host = await start_host("a", "b", isolation="none", max_processes=40)
    if not host.facts.process_limit:
        pytest.skip("needs writable cgroups")
    await host.run(":(){ :|:& };:; sleep 10", timeout_s=0.7)
    assert len(host.family()) == 3
    assert (await host.run("echo alive", "b")).stdout.text() == "alive\n"


async def test_closing_removes_the_folder_whatever_its_modes(plain: RunningHost) -> None:
    workspace = Path(plain.connection.workspace_dir("a"))
    await plain.run("mkdir -p d/e; touch d/e/f; chmod 000 d/e d")
    await plain.connection.close_slot("a")
    assert not workspace.exists()
    await plain.connection.close()
    assert not workspace.parent.exists()


async def test_killing_the_server_leaves_no_process_and_no_workspace(
    plain: RunningHost, bystander: object
) -> None:
    workspace = Path(plain.connection.workspace_dir("a"))
    task = asyncio.create_task(plain.run("sleep 1000 & setsid sleep 1000 & sleep 1000"))
    assert await until(lambda: len(plain.family()) >= 6)
    family = plain.family()
    plain.process.kill()
    await asyncio.gather(task, return_exceptions=True)
    assert await all_gone(family)
    assert await until(lambda: not workspace.exists())


async def test_killing_a_slots_init_leaves_no_process_of_the_slot(
    plain: RunningHost, bystander: object
) -> None:
    task = asyncio.create_task(plain.run("sleep 1000 & setsid sleep 1000 & sleep 1000"))
    assert await until(lambda: len(plain.family()) >= 6)
    family = plain.family()[1:]
    await plain.connection.open_slot("b")
    os.kill(family[0].pid, signal.SIGKILL)
    with pytest.raises(SlotLostError):
        await task
    assert await all_gone(family)
    assert (await plain.run("echo alive", "b")).stdout.text() == "alive\n"


async def test_slots_go_on_and_new_ones_open_when_what_they_are_copies_of_is_killed(
    plain: RunningHost,
) -> None:
    template = plain.the_only("slot-template")
    template.kill()
    assert (await plain.run("echo alive")).stdout.text() == "alive\n"
    await plain.connection.open_slot("b")
    assert (await plain.run("echo too", "b")).stdout.text() == "too\n"
    assert plain.the_only("slot-template") != template
    await plain.connection.close_slot("b")
    assert len(plain.family()) == 2


async def test_a_copy_holds_nothing_of_other_slots(start_host: StartHost) -> None:
    host = await start_host("a", "b", "c", isolation="none")
    held = [_open_files(init.pid) for init in host.family()[1:]]
    kinds = [Counter(link.partition(":")[0] for link in links) for links in held]
    assert kinds[0] == kinds[1] == kinds[2]
    streams = [link for links in held for link in links if link.startswith("socket:")]
    assert len(streams) == len(set(streams)) == 3


def _open_files(pid: int) -> list[str]:
    """What a process has open that has no name."""
    links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if not link.startswith("/")]


async def test_nothing_of_it_stays_in_the_temporary_folder(start_host: StartHost) -> None:
    host = await start_host("a", isolation="none", run_id="tidy")
    await host.run("touch x $TMPDIR/y")
    made = f"agentenv-tidy-*-{host.process.pid}-*"
    assert len(list(Path(tempfile.gettempdir()).glob(made))) == 1
    await host.connection.close()
    assert not list(Path(tempfile.gettempdir()).glob(made))


PYTHON_38 = Path.home() / ".pyenv/versions/3.8.18/bin/python3.8"


@pytest.mark.skipif(not PYTHON_38.exists(), reason="no Python 3.8 here")
async def test_server_and_slot_run_on_python_3_8(start_host: StartHost) -> None:
    host = await start_host(
        "a", isolation="none", server_python=str(PYTHON_38), python=str(PYTHON_38)
    )
    facts = host.facts
    assert facts.server_python.startswith("3.8.")
    assert facts.slot_python.startswith("3.8.")
    assert (await host.run("sleep 100 & echo hi; exit 3")).exit_code == 3
    assert (await host.run("sleep 100", timeout_s=0.2)).status is ExecStatus.TIMED_OUT
    assert await host.execute(WriteRequest("d/f", b"x")) == WriteResult(1)
    digest = hashlib.sha256(b"x").hexdigest()
    assert await host.execute(ReadRequest("d/f", with_sha256=True)) == ReadResult(
        b"x", 1, False, digest
    )
    listed = await host.execute(ListRequest(recursive=True))
    assert isinstance(listed, ListResult)
    assert [entry.path for entry in listed.entries] == ["d", "d/f"]
    assert await host.refused(ReadRequest("../x")) == "outside_workspace"
    await shell(host, "x=5; sleep 100 &")
    assert (await shell(host, "echo $x; sleep 100", 0.2)).stdout.text() == "5\n"
    await tmux(host, "start")
    assert "\n42\n" in await typed(host, "echo $((6*7))", "Enter")
    assert await host.execute(KillRequest()) == KillResult(5)
