"""Real sandboxes on this machine."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentenv_backends import _process, local
from agentenv_backends._uids import RANGE_SIZE, claim_uid_range
from agentenv_backends.config import LocalConfig
from agentenv_backends.errors import (
    BackendUnavailableError,
    HostLostError,
    HostStartError,
    InfrastructureError,
    SlotLostError,
)
from agentenv_backends.requests import ExecRequest, ListRequest, ReadRequest, WriteRequest
from agentenv_backends.results import ExecStatus
from agentenv_backends.sandboxd import leftovers
from tests.processes import alive, descendants, parent_of, process_of, running
from tests.waiting import WITHIN_S, eventually

sandbox = pytest.mark.sandbox


def small(slots: int, **more: Any) -> LocalConfig:
    return LocalConfig(slots=slots, memory_mb=128, disk_mb=16, tmp_mb=8, **more)


@pytest.fixture
async def pool():
    async with small(4).build() as pool:
        yield pool


def hosts_of(pool):
    return pool._keeper._provider.hosts


async def ended(processes):
    await eventually(lambda: not alive(processes), lambda: f"the end of {alive(processes)}")


def busy_below(pid, count):
    """Until so many commands of `sleep 600` run below a process."""
    return eventually(
        lambda: sum(each.command == ["sleep", "600"] for each in descendants(pid)) >= count,
        f"{count} commands under way",
    )


# --- One slot after another --------------------------------------------------------------------


@sandbox
async def test_a_command_runs_in_a_real_sandbox(pool):
    slot = await pool.acquire("a")
    result = await pool.execute(slot, ExecRequest("echo hi; id -u; pwd"))
    assert result.stdout.text() == "hi\n1000\n/workspace\n"
    await pool.release(slot)
    assert pool.capabilities.isolation == "bubblewrap"
    assert pool.capabilities.stateful_terminals
    assert pool.capabilities.tmux == (shutil.which("tmux") is not None)


@sandbox
async def test_a_reset_leaves_no_file_no_process_and_no_setting():
    dirty = (
        "mkdir -p a/b && chmod 000 a/b; echo x > .hidden; ln -s / root; mkfifo pipe; echo x > /tmp/t; "
        "echo x > /dev/shm/s; (setsid sleep 600 &); export LEFT=1; ulimit -n 100; umask 077; "
        "git config --global user.name Mallory 2>/dev/null; true"
    )
    look = (
        "find /workspace /tmp /dev/shm /run /var -mindepth 1 -not -type d -printf '%p ' ; "
        "ps -e 2>/dev/null | wc -l; echo ${LEFT:-unset} $(ulimit -n) $(umask); id; ls -la /workspace | wc -l; "
        "hostname; cat /proc/self/uid_map"
    )
    async with small(1).build() as pool:
        fresh = await pool.acquire("first")
        expected = await pool.execute(fresh, ExecRequest(look))
        await pool.execute(fresh, ExecRequest(dirty))
        await pool.release(fresh)
        again = await pool.acquire("second")
        found = await pool.execute(again, ExecRequest(look))
        assert found.stdout.text() == expected.stdout.text()
        assert (await pool.execute(again, ListRequest(recursive=True))).entries == ()


@sandbox
async def test_after_a_release_no_process_of_the_slot_is_left(pool):
    slot = await pool.acquire("a")
    host = hosts_of(pool)[slot.host_id]
    before = descendants(host.pid)
    call = asyncio.create_task(
        pool.execute(slot, ExecRequest("(setsid sleep 601 &); sleep 601", 700))
    )

    def busy():
        return {each for each in descendants(host.pid) - before if each.name == "sleep"}

    await eventually(lambda: len(busy()) == 2, "both processes of the command")
    processes = busy()
    await pool.release(slot)
    assert not alive(processes)
    with pytest.raises(SlotLostError):
        await call


@sandbox
async def test_slots_do_not_see_one_another(pool):
    mine, other = await pool.acquire("a"), await pool.acquire("b")
    await pool.execute(mine, WriteRequest("secret", b"mine"))
    answer = await pool.execute(other, ExecRequest("cat /workspace/secret; ls /workspace /tmp"))
    assert "mine" not in answer.stdout.text()
    assert (await pool.execute(mine, ReadRequest("secret"))).content == b"mine"


@sandbox
async def test_stopping_leaves_no_process_no_folder_and_no_cgroup():
    pool = small(3).build()
    await pool.start()
    slots = [await pool.acquire(f"t{n}") for n in range(3)]
    calls = [
        asyncio.create_task(pool.execute(slot, ExecRequest("sleep 600", 700))) for slot in slots
    ]
    (host,) = [host for name, host in hosts_of(pool).items() if name != "trial"]
    await busy_below(host.pid, 3)
    everything = {process_of(host.pid), *descendants(host.pid)}
    await pool.stop()
    assert not alive(everything)
    assert not _process._running
    assert not owned_by(host.pid)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, HostLostError) for answer in answers)


def owned_by(pid):
    """Cgroups and temporary folders that a host with this pid owns."""
    names = [*Path("/sys/fs/cgroup").rglob("agentenv-*"), *Path("/tmp").glob("agentenv-*")]
    return [path for path in names if (owner := leftovers.owner_of(path.name)) and owner.pid == pid]


# --- Faults ------------------------------------------------------------------------------------


@sandbox
async def test_a_slot_that_is_killed_under_load_is_replaced_and_its_neighbours_go_on(pool):
    victim, neighbour = await pool.acquire("victim"), await pool.acquire("neighbour")
    host = hosts_of(pool)[victim.host_id]
    busy = asyncio.create_task(pool.execute(victim, ExecRequest("exec sleep 602", 700)))
    calm = asyncio.create_task(pool.execute(neighbour, ExecRequest("sleep 1; echo fine")))

    def init():
        commands = [each for each in descendants(host.pid) if each.command == ["sleep", "602"]]
        return parent_of(commands[0]) if commands else None

    await eventually(init, "the victim's command")
    os.kill(init(), signal.SIGKILL)
    with pytest.raises(SlotLostError):
        await busy
    assert (await calm).stdout.text() == "fine\n"
    await pool.release(victim)
    fresh = await pool.acquire("after")
    assert (await pool.execute(fresh, ExecRequest("echo ok"))).stdout.text() == "ok\n"
    assert pool.stats().lost_slots == 1


@sandbox
async def test_a_server_that_is_killed_under_load_is_replaced_and_leaves_nothing(pool):
    slots = [await pool.acquire(f"t{n}") for n in range(4)]
    calls = [
        asyncio.create_task(pool.execute(slot, ExecRequest("sleep 600", 700))) for slot in slots
    ]
    host = hosts_of(pool)[slots[0].host_id]
    await busy_below(host.pid, 4)
    everything = descendants(host.pid)
    os.kill(host.pid, signal.SIGKILL)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [HostLostError] * 4
    await ended(everything)
    fresh = await pool.acquire("after", timeout_s=WITHIN_S)
    assert fresh.host_id != slots[0].host_id
    assert (await pool.execute(fresh, ExecRequest("echo ok"))).stdout.text() == "ok\n"
    for slot in slots:
        await pool.release(slot)
    assert not owned_by(host.pid)


@sandbox
async def test_a_frozen_server_does_not_keep_stop_from_ending_it():
    pool = small(1).build()
    await pool.start()
    slot = await pool.acquire("a")
    host = hosts_of(pool)[slot.host_id]
    everything = {process_of(host.pid), *descendants(host.pid)}
    os.kill(host.pid, signal.SIGSTOP)
    await pool.stop()
    await ended(everything)
    assert not _process._running


def _slots_below(pid):
    """What holds slots up. To kill a program that a command runs is to change what the command does."""
    return [each for each in descendants(pid) if each.name.startswith(("bwrap", "python"))]


@sandbox
@pytest.mark.slow
async def test_trajectories_come_through_while_slots_and_servers_are_killed():
    chance = random.Random(1)
    done = []

    async def trajectory(pool, name):
        while name not in done:
            slot = await pool.acquire(name, timeout_s=60)
            try:
                await pool.execute(slot, WriteRequest("name", name.encode()))
                await pool.execute(slot, ExecRequest("sleep 0.05"))
                answer = await pool.execute(slot, ExecRequest("cat name; ls | wc -l"))
                if answer.status is ExecStatus.EXITED:
                    assert answer.stdout.text() == f"{name}1\n"
                    done.append(name)
            except InfrastructureError:
                continue
            finally:
                await pool.release(slot)

    async with small(16).build() as pool:
        tasks = [asyncio.create_task(trajectory(pool, f"t{n}")) for n in range(200)]
        for round_ in range(12):
            await asyncio.sleep(0.1)
            hosts = [host.pid for host in hosts_of(pool).values() if running(host.pid)][-1:]
            if round_ % 6 == 5:
                victims = [process_of(pid) for pid in hosts]
            else:
                victims = [process for pid in hosts for process in _slots_below(pid)]
            if victims:
                chance.choice(victims).kill()
        await asyncio.gather(*tasks)
        assert pool.stats().acquired_slots == 0
        assert pool.stats().lost_hosts >= 1
    assert sorted(done) == sorted(f"t{n}" for n in range(200))


# --- The end of the driver -----------------------------------------------------------------------


@asynccontextmanager
async def busy_driver(slots, isolation, end):
    """A driver whose slots are all busy, and the pids of its servers."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("driver.py")), str(slots), isolation, end],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]},
        text=True,
        start_new_session=True,
    ) as driver:
        try:
            words = (await asyncio.to_thread(driver.stdout.readline)).split()
            assert words[:1] == ["busy"], "the driver did not get its slots"
            yield driver, [int(word) for word in words[1:]]
        finally:
            driver.kill()


ENDS = [
    pytest.param(signal.SIGKILL, id="SIGKILL"),
    pytest.param(signal.SIGTERM, id="SIGTERM"),
    pytest.param(signal.SIGINT, id="SIGINT"),
    pytest.param("exit", id="exit without stop"),
]


@sandbox
@pytest.mark.parametrize("isolation", ["bubblewrap", "none"])
@pytest.mark.parametrize("end", ENDS)
async def test_whatever_ends_the_driver_ends_its_sandboxes(end, isolation):
    async with busy_driver(4, isolation, str(end)) as (driver, pids):
        if end == "exit":
            await asyncio.to_thread(driver.wait, WITHIN_S)
            await eventually(lambda: not any(map(running, pids)), "the end of the sandboxes")
            return
        everything = descendants(driver.pid)
        assert len(everything) > 8
        driver.send_signal(end)
        await asyncio.to_thread(driver.wait, WITHIN_S)
        await ended(everything)


@sandbox
@pytest.mark.slow
async def test_sixty_four_busy_slots_end_with_the_driver():
    async with busy_driver(64, "bubblewrap", "wait") as (driver, _):
        everything = descendants(driver.pid)
    assert len(everything) > 64 * 3
    await ended(everything)


@sandbox
async def test_a_launch_cancelled_at_any_moment_leaves_nothing():
    provider = local.LocalProvider(small(1))
    before = descendants(os.getpid())
    for delay in (0, 0.005, 0.02, 0.05, 0.1, 0.2):
        launch = asyncio.create_task(provider.launch("h1"))
        await asyncio.sleep(delay)
        launch.cancel()
        await asyncio.wait({launch})
        if not launch.cancelled():
            await launch.result().close()
        await ended(descendants(os.getpid()) - before)
    assert not _process._running


# --- Sweep, identity, preconditions ----------------------------------------------------------------


@sandbox
async def test_a_sweep_removes_what_dead_runs_left_and_nothing_of_live_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    dead = subprocess.Popen(["sleep", "60"])
    owner = leftovers.Owner(dead.pid, leftovers.start_time(dead.pid) or 0)
    left = tmp_path / leftovers.name_for("run", owner, "slots")
    mine = tmp_path / leftovers.name_for("run", leftovers.owner_of_this_process(), "slots")
    foreign = tmp_path / "agentenv-notes"
    for folder in (left, mine, foreign):
        (folder / "sub").mkdir(parents=True)
    async with small(1).build() as first:
        slot = await first.acquire("a")
        assert left.exists(), "its owner still lives"
        dead.kill()
        dead.wait()
        async with small(1).build() as second:
            assert not left.exists()
            assert mine.exists()
            assert foreign.exists()
            other = await second.acquire("b")
            assert (await second.execute(other, ExecRequest("echo b"))).stdout.text() == "b\n"
        assert (await first.execute(slot, ExecRequest("echo a"))).stdout.text() == "a\n"


def test_no_two_hosts_get_the_same_user_ids():
    first, second = claim_uid_range(), claim_uid_range()
    assert abs(first.base - second.base) >= RANGE_SIZE
    first.release()
    third = claim_uid_range()
    assert third.base == first.base
    second.release()
    third.release()


async def test_without_bubblewrap_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    pool = LocalConfig().build()
    with pytest.raises(
        BackendUnavailableError, match=r"apt-get install bubblewrap.*isolation: none"
    ):
        await pool.start()


async def test_a_server_that_cannot_run_is_a_host_that_did_not_start(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HostStartError):
        await local.LocalProvider(LocalConfig()).launch("h1")
    assert not _process._running


async def test_secrets_of_the_driver_are_not_in_its_servers_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    process = _process.ServerProcess.start()
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    process.stream.close()
    process.kill()
    await process.end(5)
    assert b"hunter2" not in environment
