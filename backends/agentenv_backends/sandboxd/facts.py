"""What is really in force in a host's slots, looked up from inside the first one. Missing protection is refused."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from typing import Any, Dict, List

from . import bwrap, frames
from .launcher import HostError, Launcher, SlotProcess
from .settings import HostFacts

_TIMEOUT_S = 20.0
_NO_NAMESPACES = (
    "; user namespaces are not permitted here: allow them (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container seccomp=unconfined), or choose isolation none and "
    "read what it gives up"
)


def probe(launcher: Launcher) -> HostFacts:
    """Start one slot, ask it what is in force, end it. Raises `HostError` where a protection is missing."""
    process = launcher.start(report=True)
    try:
        report = _ask(process)
        host_uid = _uid_of(process.pid)
    finally:
        _end(process)
        launcher.finish(process)
    if launcher.confined:
        _check(report, host_uid, allow_network=launcher.settings.allow_network)
    facts = _facts(launcher, report)
    _check_required(facts, launcher.settings.require)
    return facts


def _ask(process: SlotProcess) -> Dict[str, Any]:
    process.stream.settimeout(_TIMEOUT_S)
    reader = frames.FrameReader()
    got: List[frames.Frame] = []
    try:
        process.stream.sendall(frames.encode(frames.SETUP, header=process.setup))
        while not got:
            data = process.stream.recv(1 << 16)
            if not data:
                raise HostError(_explain(process.error_text()))
            got = reader.feed(data)
    except socket.timeout as error:
        raise HostError("the first slot did not start within %g s" % _TIMEOUT_S) from error
    except OSError as error:
        raise HostError(_explain(process.error_text())) from error
    report = json.loads(got[0].header)
    assert isinstance(report, dict)
    return report


def _end(process: SlotProcess) -> None:
    """The init ends with its stream, and the outermost process when nothing of the slot is left."""
    deadline = time.monotonic() + 5.0
    process.end()
    while os.waitpid(process.pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.002)


def _explain(text: str) -> str:
    hint = _NO_NAMESPACES if "namespace" in text or "uid map" in text else ""
    return "the first slot ended at once: %s%s" % (text or "no reason given", hint)


def _uid_of(pid: int) -> int:
    with open("/proc/%d/status" % pid, encoding="utf-8", errors="replace") as file:
        fields = next(line for line in file if line.startswith("Uid:")).split()
    return int(fields[1])


def _check(report: Dict[str, Any], host_uid: int, *, allow_network: bool) -> None:
    wanted = {
        "a pid namespace": report["pid"] == 1,
        "a system call filter": report["seccomp"],
        "no_new_privs": report["no_new_privs"],
        "an empty capability set": report["no_capabilities"],
        "an unprivileged user on the host": host_uid != 0,
        "a read-only /proc/sys": not report["sysctl_writable"],
        "a read-only root": report["root_readonly"],
        "a read-only /dev": report["dev_readonly"],
        "a network namespace": allow_network or report["interfaces"] == 0,
    }
    missing = [name for name, held in wanted.items() if not held]
    if missing:
        raise HostError("slots here would lack %s; refused" % ", ".join(missing))


def _check_required(facts: HostFacts, required: Any) -> None:
    held = {
        "memory": facts.memory_limit,
        "processes": facts.process_limit,
        "disk": facts.disk_limit,
        "cpus": facts.cpu_limit,
        "network": "" if facts.network == "host" else facts.network,
    }
    missing = [name for name in required if not held[name]]
    if missing:
        raise HostError(
            "required, but cannot be enforced here: %s; make cgroups writable, or take it out of `require`"
            % ", ".join(missing)
        )


def _facts(launcher: Launcher, report: Dict[str, Any]) -> HostFacts:
    settings, confined = launcher.settings, launcher.confined
    version = launcher.cgroups.version if launcher.cgroups else 0
    controllers = launcher.cgroups.controllers if launcher.cgroups else ()
    by_cgroup = "cgroup v%d" % version
    last_uid = settings.uid_base + settings.uid_count - 1
    known = {
        "isolation": settings.isolation,
        "workspace": bwrap.WORKSPACE if confined else launcher.folders,
        "kernel": platform.release(),
        "server_python": platform.python_version(),
        "slot_python": report["python"],
        "bubblewrap": launcher.version,
        "started_as_root": os.geteuid() == 0,
        "slot_uids": "%d-%d" % (settings.uid_base, last_uid)
        if launcher.drops_uid
        else str(os.geteuid()),
        "pid_namespace": report["pid"] == 1,
        "seccomp": confined and report["seccomp"],
        "no_new_privs": report["no_new_privs"],
        "no_capabilities": report["no_capabilities"],
        "sysctl_readonly": not report["sysctl_writable"],
        "root_readonly": report["root_readonly"],
        "network": "none" if confined and not settings.allow_network else "host",
        "cgroup": "v%d" % version if version else "",
        "controllers": tuple(controllers),
        "memory_limit": by_cgroup if "memory" in controllers else "rlimit, each process",
        "process_limit": by_cgroup
        if "pids" in controllers
        else ("rlimit, each slot" if launcher.limits_processes_inside else ""),
        "disk_limit": "size of the memory file system" if confined else "",
        "cpu_limit": by_cgroup if "cpu" in controllers else "",
    }
    return HostFacts.from_json(dict(known, gives_up=_gives_up(known)))


def _gives_up(known: Dict[str, Any]) -> List[str]:
    """What is not protected, for people to read."""
    lost = []
    if known["isolation"] == "none":
        lost += [
            "Commands run as the driver's own user and can read and change whatever it can.",
            "Commands see and can signal the host's processes.",
            "A process that is handed to a daemon of the host outlives its slot.",
        ]
    if known["network"] == "host":
        lost.append(
            "Commands reach the host's network, its loopback and its abstract sockets included."
        )
    if not known["disk_limit"]:
        lost.append("Files are limited by the disk alone.")
    if not known["process_limit"]:
        lost.append("The number of processes is not limited.")
    if known["memory_limit"].startswith("rlimit"):
        lost.append(
            "Memory is limited for each process, not for a slot as a whole; shared memory is not limited at all."
        )
    return lost
