"""Slots in containers of a real engine: what they have, share, and cannot do."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio

import pytest

from agentenv_backends.errors import SlotExhaustedError
from agentenv_backends.requests import ExecRequest, ReadRequest, WriteRequest
from tests.docker_engine import needs_engine

pytestmark = [pytest.mark.docker, pytest.mark.slow, needs_engine]


async def test_commands_run_in_a_container_and_files_go_in_and_out(ground):
    here = await ground()
    slot = await here.pool.acquire("a")
    await here.pool.execute(slot, WriteRequest("notes/a", b"x" * 5_000_000))
    assert await here.say(slot, "wc -c < notes/a; cat /etc/os-release | head -1") == (
        '5000000\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
    )
    read = await here.pool.execute(slot, ReadRequest("notes/a", max_bytes=10_000_000))
    assert read.content == b"x" * 5_000_000
    assert here.pool.capabilities.isolation == "user"


async def test_a_trajectory_alone_in_a_container_has_the_folders_of_a_local_slot(ground):
    here = await ground(slots=1)
    slot = await here.pool.acquire("a")
    assert await here.say(slot, "pwd; echo $HOME $TMPDIR; touch /tmp/x /dev/shm/y && hostname") == (
        "/workspace\n/workspace /tmp\nsandbox\n"
    )
    assert here.pool.capabilities.isolation == "container"
    assert here.pool.capabilities.memory_limit


async def test_the_next_trajectory_finds_nothing_of_the_last(ground):
    here = await ground(slots=1, max_hosts=1)
    look = "find /workspace /tmp /dev/shm -mindepth 1; ps -eo args | grep -c 'slee[p]'; echo ${LEFT-unset}"
    first = await here.pool.acquire("first")
    fresh = await here.say(first, look)
    await here.say(first, "echo x > .a; echo x > /tmp/b; echo x > /dev/shm/c; (setsid sleep 500 &)")
    await here.pool.release(first)
    second = await here.pool.acquire("second")
    assert second.host_id == first.host_id
    assert await here.say(second, look) == fresh


async def test_slots_of_one_container_share_nothing_they_can_write(ground):
    here = await ground()
    mine, other = await here.pool.acquire("mine"), await here.pool.acquire("other")
    assert mine.host_id == other.host_id
    await here.say(mine, "echo secret > key; chmod 777 . key; sleep 400 & echo $! > pid")
    attempts = (
        f"cat {mine.workspace_dir}/key; ls {mine.workspace_dir}; touch /x /tmp/x /var/tmp/x /run/x /dev/x "
        "/dev/shm/x /dev/mqueue/x /slots/x; ipcmk -M 1; ipcmk -S 1; ipcmk -Q; kill -9 -1; true"
    )
    answer = await here.run(other, attempts)
    assert "secret" not in answer.stdout.text()
    writable = "find / -writable -not -type l -not -path '/proc/*' 2>/dev/null; true"
    own = {other.workspace_dir, other.workspace_dir.replace("workspace", "tmp"), "/dev/mqueue"}
    devices = {
        "/dev/" + name for name in ("full", "null", "pts/ptmx", "random", "tty", "urandom", "zero")
    }
    questions = {"/run/nscd/socket"}  # to the service for names, which answers and keeps nothing
    assert set((await here.say(other, writable)).split()) <= own | devices | questions
    assert await here.say(mine, "cat key") == "secret\n"


async def test_a_full_disk_is_one_slots_and_no_others(ground):
    here = await ground()
    full, other = await here.pool.acquire("full"), await here.pool.acquire("other")
    answer = await here.run(full, "head -c 100000000 /dev/zero > big")
    assert "No space left" in answer.stderr.text()
    await here.say(other, "head -c 10000000 /dev/zero > fits")
    await here.pool.release(full)
    await here.pool.acquire("again")


async def test_many_slots_of_one_container_answer_side_by_side(ground):
    here = await ground(slots=32, max_hosts=1, disk_mb=4, tmp_mb=2)
    slots = await asyncio.gather(*(here.pool.acquire(f"t{n}", timeout_s=60) for n in range(32)))
    answers = await asyncio.gather(*(here.say(slot, "pwd; sleep 0.5") for slot in slots))
    assert len(set(answers)) == 32


# --- The profile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
async def test_a_container_is_as_hardened_as_the_benchmarks_ask(ground, slots):
    here = await ground(slots=slots)
    slot = await here.pool.acquire("a")
    container = await here.container(slot).show()
    host = container["HostConfig"]
    harmless = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"}
    assert host["CapDrop"] == ["ALL"]
    assert {name.removeprefix("CAP_") for name in host["CapAdd"]} <= harmless
    assert host["SecurityOpt"] == ["no-new-privileges"]  # and so the engine's own seccomp filter
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert not host["Binds"]
    assert not container["Mounts"]
    assert not host["Devices"]
    assert not host["PortBindings"]
    assert host["NetworkMode"] == "none"
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
    assert host["IpcMode"] == ("private" if slots == 1 else "none")
    assert host["MemorySwap"] == host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["CpuShares"] > 0
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert host["LogConfig"]["Type"] == "none"
    assert host["CgroupParent"] == ""
    assert host["AutoRemove"]
    assert host[
        "Init"
    ]  # but for `run_as_root`, where the server itself must be what cannot be killed
    assert {limit["Name"] for limit in host["Ulimits"]} == {"core", "nofile"}
    assert container["State"]["Health"]["Status"] in ("starting", "healthy")
    assert set(container["Config"]["Labels"]) >= {"agentenv.run", "agentenv.owner"}


async def test_a_command_has_no_privilege_and_no_network(ground):
    here = await ground()
    slot = await here.pool.acquire("a")
    shown = await here.say(slot, "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status")
    fields = dict(line.split(":\t") for line in shown.splitlines())
    assert int(fields["CapEff"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    forbidden = (
        "echo x > /proc/sys/kernel/core_pattern; echo x > /proc/sysrq-trigger; mount -t tmpfs x /mnt; "
        "unshare -Ur true; mknod x c 1 1; cat /proc/1/environ; echo done"
    )
    answer = await here.run(slot, forbidden)
    assert answer.stdout.text() == "done\n"
    assert len(answer.stderr.text().splitlines()) >= 6
    assert await here.say(slot, "ls /sys/class/net") == "lo\n"


# --- A container of its own ----------------------------------------------------------------------


async def test_a_writable_root_is_a_fresh_container_for_every_trajectory(ground):
    here = await ground(slots=1, read_only_root=False, max_hosts=2)
    first = await here.pool.acquire("first")
    await here.say(first, "echo x > /var/tmp/mark; ls /var/tmp")
    await here.pool.release(first)
    second = await here.pool.acquire("second", timeout_s=60)
    assert second.host_id != first.host_id
    assert await here.say(second, "ls /var/tmp") == ""
    assert not here.pool.capabilities.disk_limit


_KILL_EVERYBODY = """
import os
for name in filter(str.isdigit, os.listdir("/proc")):
    uid = os.stat("/proc/" + name).st_uid
    if int(name) != os.getpid() and os.fork() == 0:
        for uid in {uid, *map(int, open("/proc/" + name + "/status").read().split("Uid:")[1].split()[:4])}:
            try:
                os.setresuid(uid, uid, 0)
                os.kill(int(name), 9)
            except OSError:
                pass
        os._exit(0)
"""


async def test_a_root_that_takes_everybodys_id_to_kill_them_has_only_used_its_own_slot_up(ground):
    """Not its container: that would be the infrastructure's failure, and a free second try."""
    here = await ground(slots=1, read_only_root=False, run_as_root=True)
    slot = await here.pool.acquire("a")
    attack = ExecRequest("python3 -; sleep 20", 30, stdin=_KILL_EVERYBODY.encode())
    with pytest.raises(SlotExhaustedError):
        await here.pool.execute(slot, attack)


async def test_root_is_root_of_its_container_only(ground):
    here = await ground(slots=1, read_only_root=False, run_as_root=True)
    slot = await here.pool.acquire("a")
    assert await here.say(slot, "id -u; touch /usr/bin/new && echo written") == "0\nwritten\n"
    answer = await here.run(
        slot, "echo x > /proc/sys/kernel/core_pattern; mount -t tmpfs x /mnt; true"
    )
    assert "Read-only file system" in answer.stderr.text()
    assert "permission denied" in answer.stderr.text()


_WHO = """
whoami; id -un; id -gn; echo ~agent; python3 -c '
import getpass, os, pwd
print(pwd.getpwuid(os.getuid()).pw_dir, getpass.getuser(), pwd.getpwnam("root").pw_dir)'
"""


@pytest.mark.parametrize(
    "more", [{"slots": 3}, {"slots": 1}, {"slots": 1, "read_only_root": False}]
)
async def test_the_user_of_a_slot_has_a_name_and_its_workspace_as_home(ground, more):
    here = await ground(**more)
    slot = await here.pool.acquire("a")
    home = slot.workspace_dir
    assert await here.say(slot, _WHO) == f"agent\nagent\nagent\n{home}\n{home} agent /root\n"


async def test_slots_do_not_find_each_other_by_name_nor_keep_each_other_from_it(ground):
    here = await ground()
    mine, other = await here.pool.acquire("mine"), await here.pool.acquire("other")
    uid = (await here.say(mine, "id -u")).strip()
    assert await here.say(other, f"getent passwd {uid}; echo $?") == "2\n"
    flood = """python3 -c '
import socket, time
held = []
for n in range(300):
    client = socket.socket(socket.AF_UNIX)
    client.connect("/var/run/nscd/socket")
    client.send([b"", b"x" * 11, b"\\xff" * 200][n % 3])
    held.append(client)
print("ready", flush=True)
time.sleep(30)' > said & for n in $(seq 300); do grep -q ready said && break; sleep 0.1; done; cat said"""
    assert await here.say(mine, flood) == "ready\n"
    assert await here.say(other, "whoami") == "agent\n"
