"""How the cluster's API fails, told apart.

    EngineError
    └── NomadError                  the API did not do what it was asked to
        ├── NomadUnreachableError   no answer: wrong address, not running, or a network in between; may do better
        ├── NomadServerError        5xx, such as `No cluster leader`; may do better
        ├── NomadDeniedError        401 or 403: the token
        ├── NomadNotFoundError      404
        ├── NomadRefusedError       400 and the rest of 4xx: what was asked cannot be done
        │   └── ScalingBlockedError a deployment of the job is under way; may do better
        └── NomadAnswerError        an answer that makes no sense: cut off, or not of this API; may do better

None of them says anything about allocations: what cannot be asked may well be running.
"""

from __future__ import annotations

from agentenv_backends.errors import EngineError


class NomadError(EngineError):
    """The cluster's API did not do what it was asked to. The message names address, call and reason."""


class NomadUnreachableError(NomadError):
    """There was no answer."""


class NomadServerError(NomadError):
    """A server of the cluster failed, or there is no leader."""


class NomadDeniedError(NomadError):
    """The token is missing, unknown, or may not do this."""


class NomadNotFoundError(NomadError):
    """What was asked for is not there."""


class NomadRefusedError(NomadError):
    """What was asked cannot be done."""


class ScalingBlockedError(NomadRefusedError):
    """The job cannot be scaled while a deployment of it is under way."""


class NomadAnswerError(NomadError):
    """The answer makes no sense."""
