"""Sizes and deadlines of a pool. Frozen data; times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How far the pool may go."""

    slots_per_host: int
    min_hosts: int = 1
    max_hosts: int = 1
    warm_slots: int = 1
    """Slots opened on a host as soon as it is up, before anybody asks."""
    idle_host_s: float = 60.0
    """A host above `min_hosts` of which no slot was in use for this long is ended."""
    launch_attempts: int = 3
    """Launches that may fail one after another before the pool gives up on behalf of everyone who
    waits."""
    slot_attempts: int = 3
    """Slots of one host that may fail to open one after another, or to close in all. Then the host
    is given up, as soon as none of its slots is in use."""
    backoff_s: float = 0.2
    """Pause after a first failure; it doubles with each further one, up to `max_backoff_s`."""
    max_backoff_s: float = 10.0

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
    default_timeout_s: float = 30.0
    """Deadline of requests that carry none (files)."""
    grace_s: float = 5.0
    """How much later than a request's own deadline the pool stops waiting for the answer."""
