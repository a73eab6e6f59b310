"""An environment's place at a trajectory server: joining, being told how things stand, and joining again.

The server being away is no error: everything here tries again until it is there.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from agentenv.errors import ApiError, ApiUnreachableError, UnknownEnvError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agentenv.api.client import EnvRegistered, EnvRegistration, EnvStatus, TrainerInfo
    from agentenv.api.group import WireGroup
    from agentenv.serve.link import Link

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 5.0
_GOODBYE_S = 3.0


class Backoff:
    """Growing waits with jitter between attempts at something that may be away for long."""

    def __init__(self, first_s: float, longest_s: float = _LONGEST_WAIT_S) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._jitter = random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.failures = 0

    def reset(self) -> None:
        """It worked: the next wait is the shortest again."""
        self.failures = 0

    async def wait(self) -> None:
        """Wait half to all of a time that doubles with each failure."""
        most = min(self._longest_s, self._first_s * 2 ** min(self.failures, 16))
        self.failures += 1
        await asyncio.sleep(most * self._jitter.uniform(0.5, 1.0))


async def _nothing() -> None:
    pass


class TrainerSession:
    """One environment at one server. `joined` and `info` are there after `join`.

    Groups are sent only while the server is known to be there and to know the environment: to a server that was started
    anew, a group from before would be nobody's.
    """

    def __init__(self, link: Link, registration: EnvRegistration, *, poll_s: float = 0.1) -> None:
        self._link = link
        self._registration = registration
        self._poll_s = poll_s
        self._joined: EnvRegistered | None = None
        self._info: TrainerInfo | None = None
        self._server_id: str | None = None
        self._present = asyncio.Event()
        self._away_since: float | None = None
        self.on_look: Callable[[], None] = lambda: None
        """Called before each time the server is asked how things stand."""
        self.on_rejoin: Callable[[], Awaitable[None]] = _nothing
        """Awaited when it had to join again: the trainer may be another one, with other wishes."""
        self.rejoined = 0
        """How often that was."""

    @property
    def joined(self) -> EnvRegistered:
        """What the server answered to the last registration."""
        assert self._joined is not None, "after join()"
        return self._joined

    @property
    def info(self) -> TrainerInfo:
        """What the trainer registered."""
        assert self._info is not None, "after join()"
        return self._info

    @property
    def server_id(self) -> str | None:
        """Names the server's data; None for a server that does not tell."""
        return self._server_id

    @property
    def away_s(self) -> float | None:
        """Seconds since the server stopped answering; None while it answers."""
        if self._away_since is None:
            return None
        return asyncio.get_running_loop().time() - self._away_since

    async def join(self) -> None:
        """Register, as soon as there is a server and its trainer has started. Raises what the server refuses."""
        backoff = Backoff(self._poll_s, 1.0)
        while True:
            try:
                joined = await self._link.register(self._registration)
                if joined is not None:
                    self._info = await self._link.info()
                    break
                self._note_waiting(backoff, "no trainer has started yet; waiting for one")
            except ApiUnreachableError as error:
                self._note_waiting(
                    backoff, f"the trajectory server does not answer ({error}); waiting for it"
                )
            await backoff.wait()
        self._joined = joined
        self._server_id = joined.server_id
        self._present.set()
        logger.info("joined as %s (environment %d)", joined.wandb_name, joined.env_id)

    async def follow(self, on_status: Callable[[EnvStatus], Awaitable[None]]) -> None:
        """Ask how things stand, over and over, and tell `on_status`. Joins again when the server forgot us.

        Ends only by being cancelled, or with what `on_status` raises: a server that took us once and refuses to speak
        to us now is waited for like one that is away.
        """
        backoff = Backoff(self._poll_s)
        while True:
            status = await self._ask()
            if status is None:
                await backoff.wait()
                continue
            backoff.reset()
            await on_status(status)
            await asyncio.sleep(self._poll_s)

    async def send(self, groups: Sequence[WireGroup]) -> None:
        """Hand groups over, when the server is there. Raises as `Link.send` does; the caller sends again."""
        await self._present.wait()
        tagged = [replace(group, env_id=self.joined.env_id) for group in groups]
        try:
            await self._link.send(tagged)
        except (ApiUnreachableError, UnknownEnvError):
            self._present.clear()  # until a status says that it is there, and that it knows us
            raise

    async def leave(self) -> None:
        """Say goodbye, if the server is there to hear it. Never raises."""
        if self._joined is None:
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._link.disconnect(self._joined.env_id)
        except Exception as error:  # noqa: BLE001 - a goodbye that is not heard changes nothing here
            logger.info("the server did not take our leave: %s", error)

    async def _ask(self) -> EnvStatus | None:
        self.on_look()
        try:
            status = await self._link.status(self.joined.env_id)
            if status.server_id != self._server_id:
                await self._join_again("it is another server than before")
                return None
        except UnknownEnvError as error:
            await self._join_again(str(error))
            return None
        except ApiError as error:
            self._note_away(error)
            return None
        self._note_present()
        return status

    async def _join_again(self, reason: str) -> None:
        logger.warning("joining the trajectory server again: %s", reason)
        self._present.clear()
        try:
            await self.join()
        except ApiError as error:
            self._note_away(error)
            return
        self.rejoined += 1
        await self.on_rejoin()
        self._note_present()

    def _note_away(self, error: Exception) -> None:
        self._present.clear()
        if self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()
            logger.warning("the trajectory server is away: %s; groups are kept on disk", error)

    def _note_present(self) -> None:
        if self._away_since is not None:
            logger.warning("the trajectory server is back after %.0f s", self.away_s or 0.0)
            self._away_since = None
        self._present.set()

    @staticmethod
    def _note_waiting(backoff: Backoff, message: str) -> None:
        level = logging.WARNING if backoff.failures == 0 else logging.DEBUG
        logger.log(level, "%s", message)
