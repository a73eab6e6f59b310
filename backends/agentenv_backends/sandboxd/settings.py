"""What a host is told when it is greeted, and what it says is really in force. Plain data, used by both ends."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Optional, Tuple, Type, TypeVar

ISOLATIONS = ("bubblewrap", "none")
REQUIREMENTS = ("memory", "processes", "disk", "network", "cpus")
_T = TypeVar("_T")


@dataclass(frozen=True)
class HostSettings:
    """How a host builds its slots. Fixed for the host's life."""

    run_id: str
    """Names what the host leaves in the system (cgroups, temporary folders): letters, digits, `_` and `-`."""
    isolation: str = "bubblewrap"
    memory_mb: int = 1024
    """For the processes of a slot; what lies in its /workspace and /tmp comes on top, up to their own sizes."""
    disk_mb: int = 1024
    """Size of /workspace, held in memory."""
    tmp_mb: int = 256
    """Size of /tmp, and of /dev/shm."""
    max_processes: int = 256
    cpus: Optional[float] = None
    open_files: int = 1024
    allow_network: bool = False
    uid_base: int = 200_000
    """First of the host uids that slots get when the server runs as root. Hosts of one machine need ranges apart."""
    uid_count: int = 4096
    python: str = ""
    """Interpreter for the slots' own init, 3.8 or newer, visible inside. Empty: the system's, else the host's own."""
    readonly_paths: Tuple[str, ...] = ()
    """Folders of the host that slots may read, at the same place."""
    require: Tuple[str, ...] = ()
    """Limits (of `REQUIREMENTS`) without which the host refuses to start rather than say so in its facts."""
    lease_s: float = 60.0
    """The host ends itself when it has heard nothing for so long."""
    owner_pid: int = 0
    """The driver's process, watched when it is the host's parent; 0: not watched."""

    def __post_init__(self) -> None:
        if self.isolation not in ISOLATIONS:
            raise ValueError(
                "isolation: %r; it is one of %s" % (self.isolation, ", ".join(ISOLATIONS))
            )
        if (
            not self.run_id
            or not all(c.isalnum() or c in "_-" for c in self.run_id)
            or len(self.run_id) > 64
        ):
            raise ValueError("run_id: %r; it is 1 to 64 letters, digits, _ or -" % self.run_id)
        for name, least in (
            ("memory_mb", 64),
            ("disk_mb", 1),
            ("tmp_mb", 1),
            ("max_processes", 4),
            ("open_files", 64),
        ):
            if getattr(self, name) < least:
                raise ValueError("%s: %r; it is at least %d" % (name, getattr(self, name), least))
        unknown = set(self.require) - set(REQUIREMENTS)
        if unknown:
            raise ValueError(
                "require: %s; known are %s" % (", ".join(sorted(unknown)), ", ".join(REQUIREMENTS))
            )
        if self.lease_s <= 0 or (self.cpus is not None and self.cpus <= 0):
            raise ValueError("lease_s and cpus are positive")

    def to_json(self) -> Dict[str, Any]:
        """As it goes into the greeting."""
        return asdict(self)

    @staticmethod
    def from_json(values: Dict[str, Any]) -> HostSettings:
        """Read from a greeting. Raises `ValueError` or `TypeError` for what does not fit."""
        return _from_json(HostSettings, values)


@dataclass(frozen=True)
class HostFacts:
    """What is really in force in a host's slots, as looked up from inside one where that is possible."""

    isolation: str
    workspace: str
    """Where slots have their workspace; without isolation, the folder that holds them."""
    kernel: str
    server_python: str
    slot_python: str
    bubblewrap: str = ""
    started_as_root: bool = False
    slot_uids: str = ""
    """Host uids that slots run as, `first-last`, or the caller's uid."""
    pid_namespace: bool = False
    seccomp: bool = False
    no_new_privs: bool = False
    no_capabilities: bool = False
    sysctl_readonly: bool = False
    root_readonly: bool = False
    network: str = "host"
    """`none` or `host`."""
    cgroup: str = ""
    """`v1`, `v2` or empty."""
    controllers: Tuple[str, ...] = ()
    memory_limit: str = ""
    """By what means; empty: not in force. The same for those below."""
    process_limit: str = ""
    disk_limit: str = ""
    cpu_limit: str = ""
    gives_up: Tuple[str, ...] = ()
    """What is not protected here, a sentence each."""

    def to_json(self) -> Dict[str, Any]:
        """As it goes into the answer to a greeting."""
        return asdict(self)

    @staticmethod
    def from_json(values: Dict[str, Any]) -> HostFacts:
        """Read from an answer. Raises `TypeError` for unknown names."""
        return _from_json(HostFacts, values)


def _from_json(kind: Type[_T], values: Dict[str, Any]) -> _T:
    unknown = set(values) - {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError("unknown: %s" % ", ".join(sorted(unknown)))
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
