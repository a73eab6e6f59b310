"""The receiving end of a stream of bytes, for tests of streams."""

from __future__ import annotations

import asyncio


class Receiver(asyncio.Protocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.received = b""
        self.flow: list[str] = []
        """`pause` and `resume`, as they were asked for."""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        """The reason, when the stream has ended."""

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.flow.append("pause")

    def resume_writing(self) -> None:
        self.flow.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)
