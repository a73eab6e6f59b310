"""What the terminals of one trajectory recorded, kept within bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv_backends.results import Recording, TerminalEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SESSIONS = 32
_EVENT_BYTES = 150
"""What an event takes in memory beside its text."""


@dataclass(slots=True)
class _Session:
    width: int
    height: int
    events: list[TerminalEvent] = field(default_factory=list)
    dropped_bytes: int = 0


class RecordingBook:
    """Recordings by session, in the order they came. Past `max_bytes` of memory, or `MAX_SESSIONS`, only counted."""

    __slots__ = ("_left", "_max_bytes", "_sessions")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._left = max_bytes
        self._sessions: dict[str, _Session] = {}

    @property
    def full(self) -> bool:
        """Whether nothing more is kept."""
        return self._left <= 0

    def add(self, recordings: Iterable[Recording]) -> None:
        """Keep what there is room for. Once an event does not fit, none after it is kept: a screen needs all before."""
        for recording in recordings if self._max_bytes else ():
            session = self._session(recording)
            session.dropped_bytes += recording.dropped_bytes
            for event in recording.events:
                self._add(session, event)

    def recordings(self) -> tuple[Recording, ...]:
        """All of it, one recording a session."""
        return tuple(
            Recording(name, kept.width, kept.height, tuple(kept.events), kept.dropped_bytes)
            for name, kept in self._sessions.items()
        )

    def _session(self, recording: Recording) -> _Session:
        session = self._sessions.get(recording.session)
        if session is not None:
            return session
        if len(self._sessions) >= MAX_SESSIONS:
            self._left = 0
            return next(reversed(self._sessions.values()))
        session = self._sessions[recording.session] = _Session(recording.width, recording.height)
        return session

    def _add(self, session: _Session, event: TerminalEvent) -> None:
        size = len(event.data.encode("utf-8", "replace"))
        if self._left >= _EVENT_BYTES + size:
            self._left -= _EVENT_BYTES + size
            session.events.append(event)
            return
        self._left = 0
        if event.kind == "o":
            session.dropped_bytes += size
