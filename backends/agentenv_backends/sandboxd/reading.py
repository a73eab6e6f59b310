"""Bounding what unfinished answers of many slots take in the host's memory."""

from __future__ import annotations

from typing import List

from .loop import IN, OUT, Loop
from .slots import ENDING, Slot


class ReadingBudget:
    """Beyond `limit` bytes of unfinished answers one slot is read from at a time; the others wait."""

    def __init__(self, loop: Loop, limit: int) -> None:
        self._loop = loop
        self._limit = limit
        self._reading: List[Slot] = []
        self._paused: List[Slot] = []

    def update(self, slot: Slot) -> None:
        """Call when a slot's unfinished answer has begun, grown or been completed, and when the slot has ended."""
        unfinished = slot.state != ENDING and slot.reader.pending > 0
        if unfinished and slot not in self._reading:
            self._reading.append(slot)
        elif not unfinished:
            self._drop(slot)
        if sum(each.reader.pending for each in self._reading + self._paused) <= self._limit:
            self._resume(len(self._paused))
        elif len(self._reading) > 1 and unfinished:
            self._reading.remove(slot)
            self._paused.append(slot)
            self._loop.modify(slot.process.stream.fileno(), 0)
        elif not self._reading:
            self._resume(1)

    def _drop(self, slot: Slot) -> None:
        for slots in (self._reading, self._paused):
            if slot in slots:
                slots.remove(slot)

    def _resume(self, count: int) -> None:
        for slot in self._paused[:count]:
            self._loop.modify(slot.process.stream.fileno(), IN | OUT if slot.writing else IN)
        self._reading += self._paused[:count]
        del self._paused[:count]
