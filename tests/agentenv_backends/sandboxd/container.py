"""A container without an engine: what `docker run` gives a host of isolation `user`, made of namespaces of our own.

Nothing in it reaches the machine's files, processes, network or shared memory, whatever a test does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from agentenv_backends.connection import connect_host
from agentenv_backends.sandboxd.settings import HostSettings
from agentenv_backends.sandboxd.users import NEEDED
from tests.agentenv_backends.sandboxd.harness import RunningHost, until

if TYPE_CHECKING:
    from pathlib import Path

UID_BASE = 1_880_000_000
_PYTHON = os.path.realpath(sys.executable)
"""Not the link to it in a virtual environment, which may lie below a folder that the container covers."""
DISK_MB, TMP_MB = 8, 4
_NAMESPACES = [
    "unshare",
    "--mount",
    "--pid",
    "--ipc",
    "--net",
    "--fork",
    "--mount-proc",
    "--kill-child",
]
_SCRIPT = """
set -e
mount -t tmpfs -o mode=755 none /mnt
for n in $SLOTS; do
    mkdir -p /mnt/$n/workspace /mnt/$n/tmp
    mount -t tmpfs -o nosuid,nodev,mode=700,size=8m none /mnt/$n/workspace
    mount -t tmpfs -o nosuid,nodev,mode=700,size=4m none /mnt/$n/tmp
done
mount -t tmpfs -o mode=1777,nosuid,nodev,size=16m none /dev/shm
mount -t tmpfs -o mode=1777,nosuid,nodev,size=16m none /tmp
mount -t tmpfs -o mode=1777,nosuid,nodev,size=16m none /var/tmp
umount -R -l /sys/fs/cgroup
$BEFORE
mount -o remount,ro,bind /
exec setpriv --no-new-privs --inh-caps -all --bounding-set "$CAPABILITIES" "$@"
"""


def slot_folders(slots: int) -> tuple[tuple[str, str], ...]:
    """Where `_SCRIPT` makes the folders of slots."""
    return tuple((f"/mnt/{n}/workspace", f"/mnt/{n}/tmp") for n in range(slots))


async def launch_contained(
    pyz: Path,
    slots: int = 2,
    *,
    capabilities: tuple[str, ...] = tuple(NEEDED),
    before: str = "",
    server_python: str = _PYTHON,
    **settings: Any,
) -> RunningHost:
    """Start a host as the root of a small container. `before` are shell commands run in it first."""
    ours, theirs = socket.socketpair()
    program = os.open(pyz, os.O_RDONLY)
    wanted = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    try:
        process = subprocess.Popen(
            [
                *_NAMESPACES,
                "sh",
                "-c",
                _SCRIPT,
                "sh",
                server_python,
                "-I",
                "-S",
                f"/proc/self/fd/{program}",
            ],
            stdin=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            pass_fds=[program],
            cwd="/",
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "SLOTS": " ".join(str(number) for number in range(slots)),
                "CAPABILITIES": wanted,
                "BEFORE": before or ":",
            },
        )
    finally:
        theirs.close()
        os.close(program)

    async def finished() -> None:
        assert await until(lambda: process.poll() is not None), "the server did not exit"

    values: dict[str, Any] = {
        "run_id": "test",
        "isolation": "user",
        "slot_folders": slot_folders(slots),
        "disk_mb": DISK_MB,
        "tmp_mb": TMP_MB,
        "memory_mb": 200,
        "max_processes": 40,
        "uid_base": UID_BASE,
        "uid_count": 64,
        **settings,
    }
    try:
        connection = await connect_host(ours, "host", HostSettings(**values), on_close=finished)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return RunningHost(process, connection)
