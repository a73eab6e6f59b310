"""What is really in force in a host's slots, looked up from inside the first one. Missing protection is refused."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from dataclasses import replace
from typing import Any, Dict, List, Tuple

from . import bwrap, frames, host_limits
from .launcher import HostError, Launcher
from .mounter import working_mounter
from .process import SlotProcess
from .settings import HostFacts, HostSettings
from .users import SlotHome, disk_size

_TIMEOUT_S = 20.0
_BY_CONTROLLER = {"memory": "memory_limit", "pids": "process_limit", "cpu": "cpu_limit"}
_NO_NAMESPACES = (
    "; user namespaces are not permitted here: allow them (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container seccomp=unconfined), or choose isolation none and "
    "read what it gives up"
)


def prepare(settings: HostSettings) -> Tuple[Launcher, HostFacts]:
    """What starts slots, and what is in force in them. Raises `HostError` or `OSError`."""
    if settings.isolation != "auto":
        return _prepare(settings)
    try:
        return _prepare(replace(settings, isolation="bubblewrap"))
    except (HostError, OSError) as error:
        try:
            return _prepare(replace(settings, isolation="user"))
        except (HostError, ValueError) as second:
            raise HostError("bubblewrap: %s. A user for each slot: %s" % (error, second)) from error


def _prepare(settings: HostSettings) -> Tuple[Launcher, HostFacts]:
    launcher = Launcher(settings)
    try:
        return launcher, probe(launcher)
    except BaseException:
        launcher.close()
        raise


def probe(launcher: Launcher) -> HostFacts:
    """Start one slot, ask it what is in force, end it. Raises `HostError` where a protection is missing."""
    process = launcher.start(report=True)
    try:
        report = _ask(process)
        host_uid = _uid_of(process.pid)
        if launcher.drops_uid:
            launcher.mounter = working_mounter(
                process.init_pid, process.parts.uid or 0, launcher.settings.disk_mb << 20
            )
    finally:
        _end(process)
        launcher.finish(process)
    if launcher.confined:
        _check(report, host_uid, allow_network=launcher.settings.allow_network)
    elif process.parts.home is not None:
        _check_user(report, process.parts.home, launcher.settings)
    copies = "reflink" if launcher.clones_in else "copy"
    facts = _facts(launcher, dict(report, snapshot="overlay" if launcher.mounter else copies))
    _check_required(facts, launcher.settings.require)
    return facts


def _ask(process: SlotProcess) -> Dict[str, Any]:
    process.stream.settimeout(_TIMEOUT_S)
    reader = frames.FrameReader()
    got: List[frames.Frame] = []
    try:
        process.stream.sendall(frames.encode(frames.SETUP, header=process.setup))
        while not got:
            receive = process.stream.recv if process.init_pid else process.receive_first
            data = receive(1 << 16)
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
    _refuse_without(wanted)


def _check_user(report: Dict[str, Any], home: SlotHome, settings: HostSettings) -> None:
    kept_out = settings.refuse_sockets or settings.network_kept_shut
    if report["interfaces"] and not (settings.allow_network or kept_out):
        raise HostError(
            "allow_network is false, but this container has a network, which slots that are users cannot be kept "
            "from: start it without one (docker run --network none), or set allow_network"
        )
    wanted = {
        "a filter against sockets": not (settings.refuse_sockets and report["sockets"]),
        "identities of their own": report["ids"] == [home.keeper, home.uid, home.keeper],
        "no_new_privs": report["no_new_privs"],
        "an empty capability set": report["no_capabilities"] or not home.uid,
    }
    _refuse_without(wanted)


def _refuse_without(wanted: Dict[str, bool]) -> None:
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
    last_uid = settings.uid_base + settings.uid_count - 1
    has_own_uids = launcher.drops_uid or launcher.users is not None
    isolated = confined or launcher.users is not None
    known = {
        "isolation": settings.isolation,
        "workspace": bwrap.WORKSPACE if confined else launcher.folders,
        "kernel": platform.release(),
        "server_python": platform.python_version(),
        "slot_python": report["python"],
        "bash": report["bash"],
        "tmux": report["tmux"],
        "bubblewrap": launcher.version,
        "started_as_root": os.geteuid() == 0,
        "slot_uids": "%d-%d" % (settings.uid_base, last_uid) if has_own_uids else str(os.geteuid()),
        "run_as_root": settings.run_as_root,
        "single_use": launcher.single_use,
        "pid_namespace": report["pid"] == 1,
        "seccomp": isolated and report["seccomp"],
        "no_new_privs": report["no_new_privs"],
        "no_capabilities": report["no_capabilities"],
        "sysctl_readonly": not report["sysctl_writable"],
        "root_readonly": report["root_readonly"],
        "network": "none" if isolated and not settings.allow_network else "host",
        "loopback": not (launcher.users is not None and settings.refuse_sockets),
        "cgroup": "v%d" % version if version else "",
        "controllers": tuple(launcher.cgroups.controllers) if launcher.cgroups else (),
        "snapshot": report["snapshot"],
        **_limits(launcher),
    }
    return HostFacts.from_json(dict(known, gives_up=_gives_up(known)))


def _limits(launcher: Launcher) -> Dict[str, str]:
    """By what means each limit is in force: what is each slot's own first, then what all of a host share."""
    controllers = launcher.cgroups.controllers if launcher.cgroups else ()
    by_cgroup = "cgroup v%d" % launcher.cgroups.version if launcher.cgroups else ""
    of_host = host_limits.limits_of_host() if launcher.users is not None else []
    processes = "rlimit, each slot" if launcher.limits_processes_inside else ""
    own = {
        "memory_limit": by_cgroup if "memory" in controllers else "rlimit, each process",
        "process_limit": by_cgroup if "pids" in controllers else processes,
        "cpu_limit": by_cgroup if "cpu" in controllers else "",
    }
    for controller, name in _BY_CONTROLLER.items():
        if controller in of_host and controller not in controllers:
            own[name] = "; ".join(filter(None, (own[name], "cgroup of the host, all its slots")))
    return dict(own, disk_limit=_disk_limit(launcher))


def _disk_limit(launcher: Launcher) -> str:
    if launcher.confined:
        return "size of the memory file system"
    paths = [path for pair in launcher.settings.slot_folders for path in pair]
    if paths and all(disk_size(path) is not None for path in paths):
        return "size of each folder's file system"
    return ""


def _gives_up(known: Dict[str, Any]) -> List[str]:
    """What is not protected, for people to read."""
    lost = []
    if known["isolation"] == "none":
        lost += [
            "Commands run as the driver's own user and can read and change whatever it can.",
            "Commands see and can signal the host's processes.",
            "A process that is handed to a daemon of the host outlives its slot.",
        ]
    if known["isolation"] == "user":
        lost += _given_up_by_users(known)
    elif known["network"] == "host":
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


_TWO_SLOTS = (
    "Slots of one host share its network with loopback and abstract sockets, and see the command lines of each other's "
    "processes: two that want to can talk to one another."
)


def _given_up_by_users(known: Dict[str, Any]) -> List[str]:
    if known["run_as_root"]:
        lost = [
            "Commands are root of their container: they may change all of it, this host included."
        ]
    else:
        lost = [_TWO_SLOTS]
        if not known["root_readonly"]:
            lost.append(
                "What the image lets everyone write, outside of the usual places, is shared by slots."
            )
    if not known["seccomp"]:
        lost.append("No system call filter is set.")
    if known["network"] == "host":
        lost.append("Commands reach the container's network.")
    if not known["loopback"]:
        lost.append("Commands get no sockets but Unix ones: nothing can listen on the loopback.")
    return lost
