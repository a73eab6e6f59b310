"""The errors of `agentenv_tools`, and whose mistake each one is.

    ToolError
    ├── ToolConfigError          the environment's tools or settings cannot work; raised at start    (ValueError)
    ├── ToolArgumentsError       arguments do not fit a schema; the executor answers with it         (ValueError)
    ├── ToolCallFormatError      what a model wrote is no call; parsing puts it into `ToolCall.error` (ValueError)
    ├── NoActiveSlotError        artifacts were asked of a trajectory that holds no slot             (RuntimeError)
    ├── TrajectoryReleasedError  the trajectory was released while the call waited or ran            (RuntimeError)
    └── ExecutorClosedError      the executor was used after `close`                                 (RuntimeError)

What the model did wrong reaches it as a `ToolResult` with `success` False and is never raised by the executor. What
the sandbox did wrong is an `agentenv_backends.errors.InfrastructureError`, which passes through here unchanged.
"""


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
