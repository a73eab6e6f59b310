"""The errors of `agentenv_tools`, and whose mistake each one is.

    ToolError
    ├── ToolConfigError          the environment's tools or settings cannot work; raised at start    (ValueError)
    ├── ToolArgumentsError       arguments do not fit a schema; the executor answers with it         (ValueError)
    ├── ToolCallFormatError      what a model wrote is no call; parsing puts it into `ToolCall.error` (ValueError)
    ├── NoActiveSlotError        artifacts were asked of a trajectory that holds no slot             (RuntimeError)
    ├── TrajectoryReleasedError  the trajectory was released while the call waited or ran            (RuntimeError)
    ├── ExecutorClosedError      the executor was used after `close`                                 (RuntimeError)
    └── ToolServerError          the server of an external tool failed, not the agent         (InfrastructureError)
        ├── ToolServerUnavailableError  it could not be reached, or ended in the middle of a call
        ├── ToolServerTimeoutError      it gave no answer, though the call's own deadline had passed (TimeoutError)
        └── ToolServerProtocolError     it gave an answer that is none, or refused our token

What the model did wrong reaches it as a `ToolResult` with `success` False and is never raised by the executor. What
the sandbox did wrong is an `agentenv_backends.errors.InfrastructureError`, which passes through here unchanged.
"""

from agentenv_backends.errors import InfrastructureError


class ToolError(Exception):
    """Base of every error this package raises."""


class ToolConfigError(ToolError, ValueError):
    """Tools, toolsets or executor settings cannot work. The message names the value and the way out."""


class ToolArgumentsError(ToolError, ValueError):
    """A call's arguments do not fit. The message names each field and is fit for the model to read."""


class ToolCallFormatError(ToolError, ValueError):
    """Something is no tool call. The message is fit for the model to read."""


class NoActiveSlotError(ToolError, RuntimeError):
    """The trajectory holds no slot, so there is no workspace to look into."""


class TrajectoryReleasedError(ToolError, RuntimeError):
    """The trajectory was released before the call had an answer."""


class ExecutorClosedError(ToolError, RuntimeError):
    """The executor takes no more calls."""


class ToolServerError(ToolError, InfrastructureError):
    """The server that carries out an external tool failed. Never a reason for a score."""


class ToolServerUnavailableError(ToolServerError):
    """The server could not be reached, or ended in the middle of a call."""


class ToolServerTimeoutError(ToolServerError, TimeoutError):
    """The server gave no answer in time, although it enforces the call's deadline itself."""


class ToolServerProtocolError(ToolServerError):
    """The server's answer is none that its protocol knows, or it refuses to serve us."""
