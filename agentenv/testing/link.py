"""A trajectory server in memory, for tests of what feeds it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentenv.api.client import EnvRegistered, EnvStatus, SendResult, TrainerInfo
from agentenv.api.group import WireGroup, wire_group
from agentenv.errors import ApiRefusedError, ApiUnreachableError, UnknownEnvError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentenv.api.client import EnvRegistration


@dataclass(slots=True)
class FakeLink:
    """A `Link` to a server whose trainer is the test: set `started`, `away`, `paused` and `weight` at any time.

    `groups` holds everything stored, in order; a group sent again under its id is stored once, and counted in
    `repeated`. `train` takes a batch, as a trainer does.
    """

    batch_size: int = 4
    max_token_len: int = 4096
    starting_step: int = 0
    num_steps: int = 1_000_000
    checkpoint_dir: str = ""
    checkpoint_interval: int = 0
    started: bool = True
    """Whether a trainer has started."""
    away: bool = False
    """Whether nothing is answered."""
    paused: bool = False
    weight: float = 1.0
    refuses: Callable[[WireGroup], str | None] = lambda group: None
    """Why a group is refused, or None."""
    loses_answers: int = 0
    """So many of the next groups are stored, but the sender is not told."""
    server_id: str | None = field(default_factory=lambda: uuid4().hex)
    groups: list[WireGroup] = field(default_factory=list)
    registrations: list[EnvRegistration] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    """Environments that said goodbye."""
    knocks: int = 0
    """How often an environment asked to join."""
    looks: int = 0
    """How often the status was asked for."""
    repeated: int = 0
    step: int = 0
    _known: dict[int, str] = field(default_factory=dict)
    _taken: int = 0

    def __post_init__(self) -> None:
        self.step = self.starting_step

    @property
    def queued(self) -> int:
        """Groups that no batch took yet."""
        return len(self.groups) - self._taken

    def train(self) -> bool:
        """Take a batch, if there are enough rows; whether there were."""
        rows, end = 0, self._taken
        while rows < self.batch_size and end < len(self.groups):
            rows += self.groups[end].rows
            end += 1
        if rows < self.batch_size:
            return False
        self._taken = end
        self.step += 1
        return True

    def forget(self, *, new_server: bool = True) -> None:
        """Know no environment any more, as a server that was started anew."""
        self._known.clear()
        if new_server and self.server_id is not None:
            self.server_id = uuid4().hex

    async def register(self, registration: EnvRegistration) -> EnvRegistered | None:
        """See `Link`."""
        await self._answer()
        self.knocks += 1
        if not self.started:
            return None
        self.registrations.append(registration)
        key = registration.instance or uuid4().hex
        env_id = next((held for held, known in self._known.items() if known == key), None)
        if env_id is None:
            env_id = len(self.registrations) - 1
            self._known[env_id] = key
        return EnvRegistered(
            env_id,
            f"{registration.desired_name}_0",
            self.checkpoint_dir,
            self.step,
            self.checkpoint_interval,
            self.num_steps,
            self.server_id,
        )

    async def info(self) -> TrainerInfo:
        """See `Link`."""
        await self._answer()
        return TrainerInfo(self.batch_size, self.max_token_len)

    async def status(self, env_id: int) -> EnvStatus:
        """See `Link`."""
        await self._answer()
        self.looks += 1
        if env_id not in self._known:
            raise UnknownEnvError(f"environment {env_id} is not registered", 404)
        return EnvStatus(
            current_step=self.step,
            queue_size=self.queued,
            unallocated_fraction=1.0,
            self_queue_size=self.queued,
            max_group_size=max((group.rows for group in self.groups[self._taken :]), default=1),
            env_weight=self.weight,
            paused=self.paused,
            server_id=self.server_id,
        )

    async def send(self, groups: Sequence[WireGroup | Mapping[str, Any]]) -> SendResult:
        """See `Link`."""
        await self._answer()
        arrays = [g if isinstance(g, WireGroup) else wire_group(g) for g in groups]
        for reason in map(self.refuses, arrays):
            if reason is not None:
                raise ApiRefusedError(reason, 422)
        known = {group.group_id for group in self.groups}
        for group in arrays:
            if group.group_id is not None and group.group_id in known:
                self.repeated += 1
                continue
            known.add(group.group_id)
            self.groups.append(group)
        if self.loses_answers:
            self.loses_answers -= 1
            raise ApiUnreachableError("the answer was lost")
        return SendResult(len(arrays))

    async def disconnect(self, env_id: int) -> bool:
        """See `Link`."""
        await self._answer()
        self.left.append(env_id)
        return env_id in self._known

    async def wandb_info(self) -> tuple[str | None, str | None]:
        """See `Link`."""
        await self._answer()
        return "group", "project"

    async def close(self) -> None:
        """Nothing to close."""

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise ApiUnreachableError("no answer: the fake server is away")
