"""What a slot's init and its host tell each other of a shell that is lent.

The init lends it after an answer of its own (`frames.LEND`, with the descriptors that lead to it) and wants it back by
`frames.RECALL`. The host gives it back by `frames.GIVE_BACK`, when asked to and before anything else that it has the
init do; a command that is under way then follows as the request that it was. One that the host has sent to the init
before it heard of a loan ends that loan too: the host has done nothing with it.
"""

from __future__ import annotations

from .lean import json_dumps, json_loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Tuple

DESCRIPTORS = 5
"""Where its lines go, its reports, its output, its errors, the list of its children."""


class Begun:
    """A command that is under way, and what has come of it."""

    __slots__ = ("at", "errors", "jobs", "nonce", "output", "report", "unsent")

    def __init__(self, nonce: bytes, at: float, jobs: List[int]) -> None:
        self.nonce = nonce
        self.at = at
        """When it began, of `time.monotonic`."""
        self.jobs = jobs
        """The shell's children before it."""
        self.output = self.errors = self.report = self.unsent = b""


class Returned:
    """The shell as it comes back."""

    __slots__ = ("begun", "last_code", "rests")

    def __init__(self, last_code: int, rests: List[bytes], begun: "Begun | None" = None) -> None:
        self.last_code = last_code
        self.rests = rests
        """Unfinished characters at the ends of what was recorded of its streams."""
        self.begun = begun

    def encode(self) -> Tuple[bytes, bytes]:
        """As header and body of a frame."""
        parts, begun = list(self.rests), self.begun
        values: dict[str, object] = {"code": self.last_code}
        if begun is not None:
            values.update(nonce=begun.nonce.decode("ascii"), at=begun.at, jobs=begun.jobs)
            parts += [begun.output, begun.errors, begun.report, begun.unsent]
        values["sizes"] = [len(part) for part in parts]
        return json_dumps(values), b"".join(parts)


def decode(header: bytes, body: bytes) -> Returned:
    """What `Returned.encode` has made."""
    values = json_loads(header.decode("ascii"))
    parts, start = [], 0
    for size in values["sizes"]:
        parts.append(body[start : start + size])
        start += size
    returned = Returned(values["code"], parts[:2])
    if "nonce" in values:
        begun = Begun(values["nonce"].encode("ascii"), values["at"], values["jobs"])
        begun.output, begun.errors, begun.report, begun.unsent = parts[2:]
        returned.begun = begun
    return returned
