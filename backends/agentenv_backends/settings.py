"""Sizes and deadlines of a pool. Frozen data; times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from agentenv_backends.errors import BackendConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """How far the pool may go."""

    slots_per_host: int
    min_hosts: int = 1
    max_hosts: int = 1
    warm_slots: int = 1
    """Slots kept open and free, in all, for whoever asks next. As they are taken further ones are
    opened, on hosts started ahead where that needs one, as far as `max_hosts` goes."""
    single_use_hosts: bool = False
    """A host whose slot was released or lost is ended and never used again; what is still wanted
    then is opened on new hosts. Needs `slots_per_host` 1."""
    idle_host_s: float = 60.0
    """A host above `min_hosts` is ended when neither trajectories nor `warm_slots` needed it for
    this long."""
    trajectory_life_s: float = 0.0
    """A host that will live shorter than this gets no new trajectories, and is ended when it has none. It goes on for
    those it has."""
    host_prefix: str = ""
    """What names of hosts begin with: pools that are used as one backend have one each."""
    launch_attempts: int = 3
    """Launches that may fail one after another before the pool gives up on behalf of everyone who
    waits."""
    slot_attempts: int = 3
    """Slots of one host that may fail to open one after another, or to close in all. Then the host
    is given up, as soon as none of its slots is in use."""
    backoff_s: float = 0.2
    """Pause after a first failure; it doubles with each further one, up to `max_backoff_s`."""
    max_backoff_s: float = 10.0

    def __post_init__(self) -> None:
        if self.single_use_hosts and self.slots_per_host != 1:
            raise BackendConfigError(
                f"single_use_hosts with slots_per_host={self.slots_per_host}: a host that serves "
                "one trajectory has one slot; set slots_per_host to 1"
            )

    def backoff(self, failures: int) -> float:
        """Seconds to wait after `failures` failures in a row."""
        doublings = min(failures - 1, 32)
        return float(min(self.max_backoff_s, self.backoff_s * 2**doublings))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Sizes and deadlines of a pool. Times in seconds."""

    limits: Limits
    """How many hosts and slots there may be, and how often to try for them."""
    acquire_timeout_s: float = 30.0
    """How long `acquire` waits for a slot when the caller does not say."""
    launch_timeout_s: float = 60.0
    """A host that is not up by then has failed to start."""
    prepare_timeout_s: float = 60.0
    """How long checking the machine may take, and getting there what hosts are made from."""
    open_timeout_s: float = 15.0
    """A slot that is not open by then has failed; counted from its turn on."""
    close_timeout_s: float = 10.0
    """A slot that is not closed by then is quarantined; a host that is not is given up."""
    opening_at_once: int = 8
    """Slots of one host opened at the same time; more would only make each of them wait longer."""
    ping_interval_s: float = 5.0
    """Pause between two health checks of a host, which also renew its lease."""
    ping_timeout_s: float = 10.0
    """A host that leaves two health checks in a row unanswered for so long is lost."""
    snapshot_timeout_s: float = 60.0
    """Deadline of each step with a snapshot: taking it, restoring it, fetching it, putting it elsewhere."""
    archive_memory_bytes: int = 64 << 20
    """Archives of snapshots that the driver keeps in memory; further ones lie in nameless files."""
    default_timeout_s: float = 30.0
    """Deadline of requests that carry none (files)."""
    grace_s: float = 5.0
    """How much later than a request's own deadline the pool stops waiting for the answer of a host that is there; of
    one that gives no sign of life, a second."""
