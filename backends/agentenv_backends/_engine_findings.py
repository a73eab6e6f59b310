"""What a container engine's description of itself tells about the protections of containers on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentenv_backends._findings import InForce, Protection

if TYPE_CHECKING:
    from collections.abc import Mapping

_LIMITS = {
    "memory is limited": ("MemoryLimit", "containers may take all of the machine's memory"),
    "swap is limited": ("SwapLimit", "memory over the limit may go to swap"),
    "processes are limited": ("PidsLimit", "a fork bomb reaches the machine"),
    "processor time is limited": ("CpuCfsQuota", "containers may take all processors"),
}
_CONTROLLERS = "enable the kernel's control groups for memory, pids and cpu on the engine's machine"


def assess_engine(
    name: str, version: Mapping[str, Any], info: Mapping[str, Any]
) -> list[Protection]:
    """What holds for containers on this engine. Its answers to `version` and `info` are all that is needed."""
    security = " ".join(info.get("SecurityOptions") or ())
    storage = info.get("Driver", "unknown")
    return [
        Protection(
            "the engine can be reached",
            InForce.YES,
            f"{name}, version {version.get('Version')}, API {version.get('ApiVersion')}, "
            f"{info.get('OSType')}, cgroup v{info.get('CgroupVersion', '1')}",
        ),
        *(
            _limit(what, held=bool(info.get(key)), otherwise=otherwise)
            for what, (key, otherwise) in _LIMITS.items()
        ),
        Protection(
            "files are limited",
            InForce.YES,
            f"workspaces are memory file systems with a size; the engine's own storage ({storage}) is not written",
        ),
        _by_security(
            "dangerous system calls are refused",
            held="name=seccomp" in security,
            means="seccomp filter of the engine",
            way_out="start the engine with its seccomp profile",
        ),
        _by_security(
            "a profile of the machine confines containers",
            held="name=apparmor" in security or "name=selinux" in security,
            means="AppArmor or SELinux",
            way_out="enable AppArmor or SELinux on the engine's machine",
        ),
        _by_security(
            "root of a container is not root of the machine",
            held="name=userns" in security or "name=rootless" in security,
            means="user namespaces",
            way_out="start the engine with userns-remap, or rootless; commands run as other users than root anyway",
        ),
    ]


def no_engine(reason: str) -> list[Protection]:
    """The one finding where there is none to ask."""
    way_out = "install and start one (apt-get install docker.io), or do without the docker backend"
    return [Protection("the engine can be reached", InForce.NO, reason, way_out)]


def _limit(what: str, *, held: bool, otherwise: str) -> Protection:
    if held:
        return Protection(what, InForce.YES, "cgroup of each container")
    return Protection(what, InForce.NO, otherwise, _CONTROLLERS)


def _by_security(what: str, *, held: bool, means: str, way_out: str) -> Protection:
    if held:
        return Protection(what, InForce.YES, means)
    return Protection(what, InForce.NO, "the engine does not offer it", way_out)
