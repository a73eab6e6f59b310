"""What can be made to go wrong with the emulated cluster, while it runs."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass, field


@dataclass(slots=True)
class RouteFault:
    """Requests that fail."""

    pattern: str
    """Of `METHOD /v1/path`, to be searched for."""
    status: int
    body: str
    probability: float = 1.0
    truncated: bool = False
    """The answer is right, but only the first half of it is sent."""

    def strikes(self, request: str, chance: random.Random) -> bool:
        """Whether this request fails."""
        return bool(re.search(self.pattern, request)) and chance.random() < self.probability


@dataclass(slots=True)
class Faults:
    """All off at first."""

    routes: list[RouteFault] = field(default_factory=list)
    no_leader: bool = False
    ports_missing_s: float = 0.0
    """How long the port of an allocation that runs is not mapped yet, in real seconds."""
    placement_s: float = 0.0
    """How long the scheduler takes to place anything."""
    no_placement: bool = False
    """No node takes anything: evaluations are blocked."""
    scaling_blocked: bool = False
    purge_lag_s: float = 0.0
    """How long the allocations of a purged job go on."""
    index_back: bool = False
    """The next answer has an index from long ago, once."""
    early_return: bool = False
    """Blocking queries return at once, with nothing new."""
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    counts: dict[str, int] = field(default_factory=dict)
    """Requests by `METHOD route`, faulty ones included."""

    def count(self, request: str) -> None:
        """Note a request."""
        self.counts[request] = self.counts.get(request, 0) + 1

    def of_route(self, request: str) -> RouteFault | None:
        """The fault that this request meets."""
        return next((each for each in self.routes if each.strikes(request, self.chance)), None)

    async def server_errors(
        self, seconds: float, *, pattern: str = "/v1/", probability: float = 1.0
    ) -> None:
        """5xx for a while."""
        fault = RouteFault(pattern, 500, "rpc error: server is sad", probability)
        self.routes.append(fault)
        await asyncio.sleep(seconds)
        self.routes.remove(fault)
