"""From what a probe could do in a slot to which of its protections are in force."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentenv_backends.config import LocalConfig
    from agentenv_backends.sandboxd.settings import HostFacts

_BUBBLEWRAP = "use isolation: bubblewrap"
_CGROUPS = "let this program make control groups: run it as root, or in a container whose cgroup is writable"


class InForce(StrEnum):
    """Whether a protection holds."""

    YES = "yes"
    PARTLY = "partly"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Protection:
    """One protection, as found on this machine."""

    name: str
    in_force: InForce
    means: str
    """What provides it; or what could be done though it should not be possible."""
    way_out: str = ""
    """What to do about it when it is not in force."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the probe brought back, and what it is measured against."""

    config: LocalConfig
    host: HostFacts
    uids: frozenset[int]
    """User ids of all processes below the sandbox server, as this machine sees them."""
    facts: dict[str, Any]
    memory: dict[str, Any]
    forks: dict[str, Any]
    workspace: dict[str, Any]
    tmp: dict[str, Any]


def assess(found: Findings) -> list[Protection]:
    """Every protection there should be, and whether it is in force."""
    facts = found.facts
    calls = [name for name in facts["possible"] if name not in {"chroot", "unshare(user)"}]
    return [
        _expect(
            "commands do not run as root of this machine",
            wrong=["runs as uid 0"] if 0 in found.uids else [],
            means=f"slots run as uid {', '.join(str(uid) for uid in sorted(found.uids))}",
        ),
        _expect(
            "no capabilities",
            wrong=[f"capabilities {facts['capabilities']:x}"] if facts["capabilities"] else [],
            means="all capabilities are dropped",
        ),
        _expect(
            "no new privileges",
            wrong=[] if facts["no_new_privileges"] else ["set-user-id programs give privileges"],
            means="no_new_privs is set",
        ),
        _expect(
            "dangerous system calls are refused",
            wrong=calls if facts["seccomp"] or calls else ["no filter is set"],
            means="seccomp filter",
            partly=facts["seccomp"],
        ),
        _expect(
            "no namespaces of one's own",
            wrong=[name for name in ("chroot", "unshare(user)") if name in facts["possible"]],
            means="user namespaces are used up, and filtered",
        ),
        _expect(
            "kernel settings and devices are read-only",
            wrong=facts["writable"],
            means="/proc/sys is bound read-only; devices and /sys are absent",
        ),
        _expect(
            "processes of this machine are hidden",
            wrong=["the driver's process is visible"] if facts["driver_seen"] else [],
            means=f"own pid namespace ({facts['processes']} processes seen)",
        ),
        _expect(
            "files of this machine are hidden",
            wrong=facts["paths_seen"],
            means="only /usr and a few files of /etc are there, read-only",
        ),
        _expect(
            "slots do not see one another",
            wrong=["files of a neighbour are readable"] if facts["neighbour_seen"] else [],
            means="each slot has its own file systems",
        ),
        _expect(
            "the driver's environment is hidden",
            wrong=["a secret of the driver's environment is readable"]
            if facts["secret_seen"]
            else [],
            means="slots start with a fixed environment",
        ),
        _network(found),
        _memory(found),
        _processes(found),
        _size("workspace size", found.workspace, found.config.disk_mb, found.host.disk_limit),
        _size("temporary file size", found.tmp, found.config.tmp_mb, found.host.disk_limit),
        _cpus(found),
        _expect(
            "open files are limited",
            wrong=_more(facts["open_files"], found.config.open_files, "open files"),
            means=f"{facts['open_files']} a process, by rlimit",
        ),
    ]


def _expect(name: str, *, wrong: list[str], means: str, partly: bool = False) -> Protection:
    if not wrong:
        return Protection(name, InForce.YES, means)
    in_force = InForce.PARTLY if partly else InForce.NO
    return Protection(name, in_force, f"possible: {', '.join(wrong)}", _BUBBLEWRAP)


def _more(seen: int, limit: int, what: str) -> list[str]:
    return [f"{seen} {what}"] if seen < 0 or seen > limit else []


def _network(found: Findings) -> Protection:
    name = "no network"
    reached = {
        "host_port": "ports of this machine's loopback",
        "abstract_socket": "abstract sockets of this machine",
    }
    wrong = [text for key, text in reached.items() if found.facts[key]]
    wrong += [f"interface {name}" for name in found.facts["interfaces"]]
    if not wrong:
        return Protection(name, InForce.YES, "own network namespace without interfaces")
    confined = found.config.isolation != "none"
    way_out = "set allow_network: false" if confined else _BUBBLEWRAP
    return Protection(name, InForce.NO, f"reachable: {', '.join(wrong)}", way_out)


def _memory(found: Findings) -> Protection:
    name = "memory is limited"
    means = found.host.memory_limit or "no limit"
    if found.memory["alone"]:
        return Protection(name, InForce.NO, f"one process went over it ({means})", _CGROUPS)
    if found.memory["together"]:
        return Protection(name, InForce.PARTLY, f"each process, not their sum ({means})", _CGROUPS)
    return Protection(name, InForce.YES, means)


def _processes(found: Findings) -> Protection:
    name = "processes are limited"
    alive, limit = found.forks["alive"], found.config.max_processes
    means = f"{alive} at once ({found.host.process_limit or 'no limit'})"
    if alive > limit:
        return Protection(name, InForce.NO, means, _CGROUPS)
    return Protection(name, InForce.YES, means)


def _size(what: str, fitted: dict[str, Any], limit: int, means: str) -> Protection:
    name = f"{what} is limited"
    if fitted["one"] > limit:
        return Protection(name, InForce.NO, f"{fitted['one']} MB fitted in", _BUBBLEWRAP)
    if fitted["both"] > limit:
        return Protection(name, InForce.PARTLY, "each file, not their sum", _BUBBLEWRAP)
    return Protection(
        name, InForce.YES, f"{fitted['both']} MB fitted in ({means or 'file system size'})"
    )


def _cpus(found: Findings) -> Protection:
    name = "processor time is limited"
    if found.host.cpu_limit:
        return Protection(name, InForce.YES, found.host.cpu_limit)
    if found.config.cpus is None:
        return Protection(name, InForce.NO, "no limit is configured", "set cpus")
    return Protection(name, InForce.NO, "no way to set it here", _CGROUPS)
