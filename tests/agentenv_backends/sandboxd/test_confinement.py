"""The probe of a slot from inside: everything it tries must fail."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.errors import HostStartError

if TYPE_CHECKING:
    from tests.agentenv_backends.sandboxd.harness import RunningHost, StartHost

pytestmark = pytest.mark.sandbox

CALLS = """
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
def denied(name, numbers, *arguments):
    result = libc.syscall(ctypes.c_long(numbers[column]), *arguments)
    error = ctypes.get_errno()
    print(name, "denied" if result == -1 and error in (1, 38) else "POSSIBLE %d %d" % (result, error))
denied("mount", (165, 40), b"none", b"/tmp", b"tmpfs", 0, None)
denied("umount2", (166, 39), b"/tmp", 2)
denied("unshare user", (272, 97), 0x10000000)
denied("unshare mount", (272, 97), 0x20000)
denied("setns", (308, 268), 0, 0)
denied("clone user", (56, 220), 0x10000011, 0, 0, 0, 0)
denied("clone3", (435, 435), None, 0)
denied("ptrace", (101, 117), 16, 1, 0, 0)
denied("process_vm_readv", (310, 270), 1, None, 0, None, 0, 0)
denied("keyctl", (250, 219), 0, 0, 0)
denied("add_key", (248, 217), b"user", b"x", b"y", 1, -2)
denied("bpf", (321, 280), 0, None, 0)
denied("perf_event_open", (298, 241), None, 0, -1, -1, 0)
denied("userfaultfd", (323, 282), 0)
denied("io_uring_setup", (425, 425), 1, None)
denied("chroot", (161, 51), b"/tmp")
denied("pivot_root", (155, 41), b"/tmp", b"/tmp")
denied("open_by_handle_at", (304, 265), 0, None, 0)
denied("init_module", (175, 105), None, 0, b"")
denied("kexec_load", (246, 104), 0, 0, None, 0)
denied("reboot", (169, 142), 0, 0, 0, None)
denied("sethostname", (170, 161), b"x", 1)
denied("settimeofday", (164, 170), None, None)
denied("swapon", (167, 224), b"/tmp/x", 0)
denied("syslog", (103, 116), 3, None, 0)
denied("TIOCSTI", (16, 29), 0, 0x5412, b"x")
denied("TIOCSTI with high bits", (16, 29), 0, ctypes.c_ulong(0x100005412), b"x")
denied("TIOCLINUX", (16, 29), 0, 0x541C, b"x")
denied("prlimit of init", (302, 261), 1, 7, None, None)
"""

PROBE = """
import os, socket, stat
def possible(name, action):
    try:
        action()
    except Exception as error:
        print(name, "no")
    else:
        print(name, "POSSIBLE")
def write(path):
    with open(path, "r+b") as f: f.write(b"1")
for path in ["kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/panic", "vm/swappiness",
             "vm/drop_caches", "net/ipv4/ip_forward", "kernel/domainname"]:
    possible("write " + path, lambda: write("/proc/sys/" + path))
for path in ["/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/dev/mem", "/dev/kmem", "/dev/vda", "/dev/sda",
             "/dev/kmsg", "/proc/1/mem", "/proc/1/oom_score_adj", "/proc/self/uid_map", "/proc/kcore", "/etc/passwd"]:
    possible("write " + path, lambda: write(path))
for path in ["/proc/1/environ", "/proc/1/fd/3", "/proc/1/maps", "/root/.ssh", "/var/run/docker.sock",
             "/run/docker.sock", "/etc/shadow", "/proc/kcore", "/home", "/work", "/proc/1/root/etc"]:
    possible("read " + path, lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))
for folder in ["/", "/dev", "/etc", "/usr", "/var", "/run", "/proc", "/sys", "/usr/local", "/home"]:
    possible("create in " + folder, lambda: open(folder + "/agentenv-test", "w"))
possible("list fds of init", lambda: os.listdir("/proc/1/fd"))
possible("mknod", lambda: os.mknod("/workspace/null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
possible("setuid", lambda: os.setuid(0))
possible("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
possible("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
possible("metadata address", lambda: socket.create_connection(("169.254.169.254", 80), 0.5))
possible("internet", lambda: socket.create_connection(("1.1.1.1", 53), 0.5))
possible("dns", lambda: socket.getaddrinfo("example.com", 80))
possible("more groups", lambda: os.setgroups([0]))
possible("negative nice", lambda: os.nice(-5))
"""


async def test_every_dangerous_system_call_is_denied(host: RunningHost) -> None:
    result = await host.run("python3 -", stdin=CALLS.encode())
    lines = result.stdout.text().splitlines()
    assert len(lines) == CALLS.count("\ndenied("), result.stderr.text()
    assert [line for line in lines if not line.endswith(" denied")] == []


async def test_the_probe_finds_nothing_writable_visible_or_possible(host: RunningHost) -> None:
    result = await host.run("python3 -", stdin=PROBE.encode(), timeout_s=20)
    lines = result.stdout.text().splitlines()
    assert len(lines) > 40, result.stderr.text()
    assert [line for line in lines if not line.endswith(" no")] == []


async def test_no_signal_from_inside_reaches_the_init(host: RunningHost) -> None:
    await host.run("for s in $(seq 1 64); do kill -$s 1; done; kill -9 -1")
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_commands_have_no_identity_that_means_anything_outside(host: RunningHost) -> None:
    result = await host.run("cat /proc/self/status; id")
    status = dict(
        line.split(":\t", 1) for line in result.stdout.text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert "uid=1000(agent) gid=1000(agent) groups=1000(agent)" in result.stdout.text()


@pytest.mark.skipif(os.geteuid() != 0, reason="uids are dropped when started as root")
async def test_each_slot_runs_as_a_host_user_of_its_own(start_host: StartHost) -> None:
    host = await start_host("a", "b", uid_base=345_000, uid_count=8)
    uids = set()
    for member in host.family()[1:]:
        lines = Path(f"/proc/{member.pid}/status").read_text().splitlines()
        uids |= {int(uid) for line in lines if line.startswith("Uid:") for uid in line.split()[1:]}
    assert uids == {345_000, 345_001}


async def test_processes_of_the_host_and_of_other_slots_cannot_be_seen(
    start_host: StartHost,
) -> None:
    host = await start_host("a", "b")
    result = await host.run(
        "touch /tmp/mine /workspace/mine /dev/shm/mine; set -- /proc/[0-9]*; echo $#"
    )
    assert result.stdout.text() == "2\n"
    result = await host.run(
        "ls /tmp /workspace /dev/shm; ls -d /root /home /work /sys 2>/dev/null", "b"
    )
    assert result.stdout.text() == "/dev/shm:\n\n/tmp:\n\n/workspace:\n"


async def test_host_loopback_and_abstract_sockets_are_out_of_reach(host: RunningHost) -> None:
    name = f"\0agentenv-test-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        abstract.bind(name)
        abstract.listen()
        code = f"""
import socket
for family, address in ((socket.AF_INET, {tcp.getsockname()!r}), (socket.AF_UNIX, {name!r})):
    with socket.socket(family) as s:
        s.settimeout(1)
        print(s.connect_ex(address))
"""
        result = await host.run("python3 -", stdin=code.encode())
    assert [int(line) > 0 for line in result.stdout.text().splitlines()] == [True, True]


async def test_with_network_allowed_the_hosts_loopback_is_there_and_the_facts_say_so(
    start_host: StartHost,
) -> None:
    host = await start_host("a", allow_network=True)
    assert host.facts.network == "host"
    assert any("loopback" in sentence for sentence in host.facts.gives_up)
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        port = tcp.getsockname()[1]
        result = await host.run(f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected")
    assert result.stdout.text() == "connected\n"


async def test_the_facts_name_what_is_in_force(host: RunningHost) -> None:
    facts = host.facts
    assert facts.isolation == "bubblewrap"
    assert facts.pid_namespace
    assert facts.seccomp
    assert facts.no_new_privs
    assert facts.no_capabilities
    assert facts.sysctl_readonly
    assert facts.root_readonly
    assert facts.network == "none"
    assert facts.disk_limit
    assert facts.kernel == platform.release()


async def test_a_required_limit_that_cannot_be_had_is_refused_with_its_name(
    start_host: StartHost,
) -> None:
    with pytest.raises(HostStartError, match="network"):
        await start_host(allow_network=True, require=("network",))


async def test_an_interpreter_that_slots_cannot_see_is_refused_with_the_way_out(
    start_host: StartHost, tmp_path: Path
) -> None:
    with pytest.raises(HostStartError, match="readonly_paths"):
        await start_host(python=str(tmp_path / "python3"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="32-bit calls exist on x86")
async def test_a_32_bit_system_call_ends_the_process(host: RunningHost, tmp_path: Path) -> None:
    source = tmp_path / "old.c"
    source.write_text(
        'int main(void) { int r; __asm__("int $0x80" : "=a"(r) : "a"(20)); return 0; }'
    )
    built = subprocess.run(
        ["gcc", "-o", tmp_path / "old", source], capture_output=True, check=False
    )
    if built.returncode:
        pytest.skip("no compiler")
    binary = (tmp_path / "old").read_bytes()
    result = await host.run("cat > old; chmod +x old; ./old", stdin=binary)
    assert result.exit_code == 128 + 31
