"""What a host is told when it is greeted, and what it says is really in force. Plain data, used by both ends."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, Optional, Tuple, Type, TypeVar

ISOLATIONS = ("bubblewrap", "user", "auto", "none")
"""`user`: a Unix user per slot, for hosts that are containers. `auto`: bubblewrap where it works, else `user`."""
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
    refuse_sockets: bool = False
    """For isolation `user` without `allow_network` in a container that has a network, which the driver comes by: no
    command gets a socket, not even one for the loopback, but Unix ones."""
    network_kept_shut: bool = False
    """Who runs the host keeps commands from its network, whatever interfaces it has: none is missed then."""
    proxy: str = ""
    """URL of the proxy that commands are told to use; empty: none."""
    uid_base: int = 200_000
    """First of the host uids that slots get when the server runs as root. Hosts of one machine need ranges apart, also
    when they are containers: the kernel counts a user's processes over all of them."""
    uid_count: int = 4096
    """With isolation `user` each slot takes two. None is used again before all were, and then only one whose processes
    are proved dead."""
    slot_folders: Tuple[Tuple[str, str], ...] = ()
    """For isolation `user`: workspace and folder for temporary files of each slot the host may hold at once. Best is a
    file system of its own size for each. What does not exist is made."""
    folders: Tuple[str, ...] = ()
    """Absolute paths that a slot has beside its workspace: empty at first, its own, and gone with it. With bubblewrap
    file systems in memory of `tmp_mb` each. For isolation `user` with one slot: best are such file systems too. What
    does not exist is made."""
    variables: Dict[str, str] = field(default_factory=dict)
    """Further environment variables of every command; they win over the server's own."""
    run_as_root: bool = False
    """For isolation `user` with one slot: its commands run as the container's root, and the slot is opened once."""
    python: str = ""
    """Interpreter for the slots' own init, 3.8 or newer, visible inside. Empty: the system's, else the host's own."""
    python_loader: Tuple[str, ...] = ()
    """What starts that interpreter, before its path: a dynamic loader and its options, where the system has none."""
    readonly_paths: Tuple[str, ...] = ()
    """Folders of the host that slots may read, at the same place."""
    require: Tuple[str, ...] = ()
    """Limits (of `REQUIREMENTS`) without which the host refuses to start rather than say so in its facts."""
    inherit_env: bool = False
    """Commands find the host's own environment in theirs, below what every slot has."""
    hidden_env: Tuple[str, ...] = ()
    """Beginnings of the names of variables that are not passed on."""
    lease_s: float = 60.0
    """The host ends itself when it has heard nothing for so long."""
    max_lifetime_s: Optional[float] = None
    """The host ends itself after so long, whatever it is doing."""
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
        for name in ("lease_s", "cpus", "max_lifetime_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError("%s: %r; it is positive" % (name, value))
        self._check_folders()

    def _check_folders(self) -> None:
        paths = [path for pair in self.slot_folders for path in pair]
        if self.isolation == "user" and not paths:
            raise ValueError("slot_folders: isolation user needs one pair for each slot")
        if self.folders and (self.isolation == "none" or len(self.slot_folders) > 1):
            raise ValueError(
                "folders: %r; slots that share a host's files cannot have the same path each"
                % (self.folders,)
            )
        paths += self.folders
        if any(not path.startswith("/") or os.path.normpath(path) != path for path in paths):
            raise ValueError("folders: %r; plain absolute paths are needed" % (paths,))
        if any(a != b and (a + "/").startswith(b + "/") for a in paths for b in paths) or len(
            set(paths)
        ) < len(paths):
            raise ValueError("folders: %r; none may lie in another" % (paths,))
        if self.refuse_sockets and (self.isolation not in ("user", "auto") or self.allow_network):
            raise ValueError("refuse_sockets is for isolation user without allow_network")
        if self.run_as_root and (self.isolation != "user" or len(self.slot_folders) != 1):
            raise ValueError("run_as_root is for isolation user with one pair of slot_folders")

    def to_json(self) -> Dict[str, Any]:
        """As it goes into the greeting."""
        return asdict(self)

    @staticmethod
    def from_json(values: Dict[str, Any]) -> HostSettings:
        """Read from a greeting. Raises `ValueError` or `TypeError` for what does not fit."""
        pairs = [(workspace, tmp) for workspace, tmp in values.get("slot_folders", ())]
        return _from_json(HostSettings, dict(values, slot_folders=pairs))


@dataclass(frozen=True)
class HostFacts:
    """What is really in force in a host's slots, as looked up from inside one where that is possible."""

    isolation: str
    workspace: str
    """Where slots have their workspace; without bubblewrap, the folder that holds them all."""
    kernel: str
    server_python: str
    slot_python: str
    bubblewrap: str = ""
    started_as_root: bool = False
    slot_uids: str = ""
    """Host uids that slots run as, `first-last`, or the caller's uid."""
    run_as_root: bool = False
    """Whether commands are root of their container."""
    single_use: bool = False
    """Whether the host opens a slot once, and no other after it."""
    pid_namespace: bool = False
    seccomp: bool = False
    no_new_privs: bool = False
    no_capabilities: bool = False
    sysctl_readonly: bool = False
    root_readonly: bool = False
    network: str = "host"
    """`none` or `host`."""
    loopback: bool = True
    """Whether commands may talk to each other by addresses of their own machine."""
    cgroup: str = ""
    """`v1`, `v2` or empty."""
    controllers: Tuple[str, ...] = ()
    memory_limit: str = ""
    """By what means; empty: not in force. The same for those below."""
    process_limit: str = ""
    disk_limit: str = ""
    cpu_limit: str = ""
    bash: str = ""
    """Path inside the slots of what a persistent shell needs; empty: not installed. Likewise `tmux`, for a terminal."""
    tmux: str = ""
    snapshot: str = ""
    """How slots are restored from a snapshot: `overlay` (nothing is copied before it is written to), `reflink`
    (the file system shares the blocks of large files) or `copy`."""
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
