"""The errors of `agentenv_backends`, and which of them a caller may retry.

    BackendError
    ├── BackendConfigError          the configuration cannot work; refused at start      (ValueError)
    │   └── CapabilityError         the backend does not offer what was asked of it
    ├── BackendUnavailableError     this machine lacks what the backend needs; the message says how to get it
    ├── BackendStoppedError         the backend was not started, or was stopped          (RuntimeError)
    ├── SlotStateError              the caller used a slot it does not hold              (RuntimeError)
    └── InfrastructureError         the sandbox failed, not the agent: retry in a fresh slot
        ├── HostStartError          a host did not come up
        ├── HostLostError           a host is gone; the outcome of what it was doing is unknown
        ├── SlotLostError           one slot is gone, its host lives on
        │   └── SlotExhaustedError  ... because what ran in it used up the slot's own memory limit: that is the
        │                           doing of whoever ran it, which is not always the infrastructure
        ├── AcquireTimeoutError     no slot came free before the deadline                (TimeoutError)
        ├── EngineError             a container engine, or a cluster's control plane, did not do what it was asked to
        └── SandboxTimeoutError     the sandbox did not answer, though the command's own deadline had
                                    passed                                               (TimeoutError)

What an agent does wrong (a command that fails, a path outside its workspace, a deadline it overran) is never an
exception: it is a value, see `results.py`.
"""


class BackendError(Exception):
    """Base of every error this package raises."""


class BackendConfigError(BackendError, ValueError):
    """The configuration cannot work. The message names the key, its value and what would be accepted."""


class CapabilityError(BackendConfigError):
    """The backend does not declare a capability that was asked for."""


class BackendUnavailableError(BackendError):
    """This machine lacks something the backend needs. The message says how to get it."""


class BackendStoppedError(BackendError, RuntimeError):
    """The backend was not started, or was stopped, also while the caller waited. Trying again does not help."""


class SlotStateError(BackendError, RuntimeError):
    """A slot was used by someone who does not hold it, or released twice."""


class InfrastructureError(BackendError):
    """The sandbox failed, not the agent. Never a reason for a score; a fresh slot may do better."""


class HostStartError(InfrastructureError):
    """A host did not come up."""


class HostLostError(InfrastructureError):
    """A host is gone. What its slots were doing may or may not have happened."""


class SlotLostError(InfrastructureError):
    """A slot is gone while its host lives on."""


class SlotExhaustedError(SlotLostError):
    """A slot is gone because what ran in it used up the slot's own memory limit.

    If that was an agent, the agent did it: retrying for free would let it dodge its score.
    """


class AcquireTimeoutError(InfrastructureError, TimeoutError):
    """No slot came free before the deadline."""


class EngineError(InfrastructureError):
    """A container engine, or a cluster's control plane, did not do what it was asked to.

    The message names it, the call and the reason.
    """

    def __init__(self, message: str, *, status: int = 0, transient: bool = False) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status it answered with; 0: there was no answer."""
        self.transient = transient
        """Whether the same call may do better in a moment."""


class SandboxTimeoutError(InfrastructureError, TimeoutError):
    """The sandbox gave no answer in time, although it enforces the command's deadline itself."""
