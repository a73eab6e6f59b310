"""Requests that are well formed and cannot be granted, each with its HTTP status."""

from __future__ import annotations

from typing import ClassVar


class RefusalError(Exception):
    """Base. `kind` is for programs, the message for people."""

    status: ClassVar[int]
    kind: ClassVar[str]
    later: ClassVar[bool] = False
    """Whether it may be granted later."""


class QueueFullError(RefusalError):
    """The bound on kept bytes is reached.

    503: environments of the protocol send a group three times before they drop it, our clients until it is taken.
    A status below 500 would make the former drop it at once, with a line in their log.
    """

    status, kind, later = 503, "full", True


class UnknownEnvIdError(RefusalError):
    """No environment has this id. To environments of the protocol any error status is the same here."""

    status, kind = 404, "unknown_env"


class UnknownBatchError(RefusalError):
    """No such batch is remembered."""

    status, kind = 404, "unknown_batch"


class LostLeaseError(RefusalError):
    """The batch is somebody else's by now."""

    status, kind = 409, "lost_lease"
