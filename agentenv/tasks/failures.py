"""Why a run of a task failed, and what follows from it: whether to try again, and whether it counts."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class FailureCause(StrEnum):
    """Whose failure it was."""

    SANDBOX_FAILED = "sandbox_failed"
    """The sandbox did not start, was lost, or could not be filled or read."""
    MODEL_PROVIDER_FAILED = "model_provider_failed"
    """The model's endpoint failed or refused."""
    HARBOR_FAILED = "harbor_failed"
    """The configuration asks for something that is not offered here."""
    UNCLASSIFIED = "unclassified"
    """Anything that has no row of its own."""
    AGENT_EXHAUSTED_BUDGET = "agent_exhausted_budget"
    """The agent's time, tokens or steps ran out."""
    AGENT_REFUSED_TASK = "agent_refused_task"
    """The model declined."""
    VERIFIER_FAILED = "verifier_failed"
    """The tests hung, or gave no usable reward."""
    CANCELLED = "cancelled"
    """The caller withdrew the run."""


class FailurePolicy(NamedTuple):
    """What follows from one exception."""

    cause: FailureCause
    retry: bool
    """Whether a fresh attempt may do better."""
    grade: bool
    """Whether the run counts, as a failed one; False: it is left out of every statistic."""


_SANDBOX = FailurePolicy(FailureCause.SANDBOX_FAILED, retry=True, grade=False)
_PROVIDER_TRANSIENT = FailurePolicy(FailureCause.MODEL_PROVIDER_FAILED, retry=True, grade=True)
_PROVIDER_REQUEST = FailurePolicy(FailureCause.MODEL_PROVIDER_FAILED, retry=False, grade=True)
_PROVIDER_ACCESS = FailurePolicy(FailureCause.MODEL_PROVIDER_FAILED, retry=False, grade=False)
_CONFIGURATION = FailurePolicy(FailureCause.HARBOR_FAILED, retry=False, grade=False)
_UNCLASSIFIED = FailurePolicy(FailureCause.UNCLASSIFIED, retry=True, grade=True)
_BUDGET = FailurePolicy(FailureCause.AGENT_EXHAUSTED_BUDGET, retry=False, grade=True)
_REFUSED = FailurePolicy(FailureCause.AGENT_REFUSED_TASK, retry=False, grade=True)
_VERIFIER = FailurePolicy(FailureCause.VERIFIER_FAILED, retry=False, grade=True)
_CANCELLED = FailurePolicy(FailureCause.CANCELLED, retry=False, grade=False)

_BY_NAME: dict[str, FailurePolicy] = {
    **dict.fromkeys(
        (
            "EnvironmentStartTimeoutError", "SandboxBuildFailedError", "AgentSetupTimeoutError", "HealthcheckError",
            "SetupCommandError", "AddTestsDirError", "DownloadVerifierDirError",
            "InfrastructureError", "AcquireTimeoutError", "SandboxTimeoutError", "HostLostError", "HostStartError",
            "HostError", "SlotLostError", "BackendStoppedError", "BackendUnavailableError", "EngineError",
            "TrajectoryReleasedError", "NomadError", "ModalError", "GateError", "ToolServerError",
            "ToolServerUnavailableError", "ToolServerTimeoutError", "ToolServerProtocolError",
        ),
        _SANDBOX,
    ),
    **dict.fromkeys(
        ("PolicyError", "PolicyTimeoutError", "PausedTooLongError", "RateLimitedError", "APIError", "RateLimitError",
         "APIConnectionError", "InternalServerError", "ServiceUnavailableError", "APITimeoutError"),
        _PROVIDER_TRANSIENT,
    ),
    **dict.fromkeys(
        ("PolicyRequestError", "BadRequestError", "UnprocessableEntityError", "UnsupportedParamsError",
         "BudgetExceededError", "TokensUnavailableError"),
        _PROVIDER_REQUEST,
    ),
    **dict.fromkeys(
        ("AuthenticationError", "PermissionDeniedError", "NotFoundError", "PolicyAccessError", "ModelNotFoundError"),
        _PROVIDER_ACCESS,
    ),
    **dict.fromkeys(
        ("TaskFormatError", "TaskUnsupportedError", "CapabilityError", "BackendConfigError", "ConfigError"),
        _CONFIGURATION,
    ),
    **dict.fromkeys(
        ("AgentTimeoutError", "ContextLengthError", "ContextLengthExceededError", "OutputLengthExceededError",
         "StepLimitError", "SlotExhaustedError"),
        _BUDGET,
    ),
    **dict.fromkeys(("AgentRefusedError", "ContentPolicyViolationError"), _REFUSED),
    **dict.fromkeys(
        ("VerifierTimeoutError", "RewardFileNotFoundError", "RewardFileEmptyError", "VerifierOutputParseError",
         "VerifierError"),
        _VERIFIER,
    ),
    "CancelledError": _CANCELLED,
}  # fmt: skip


def failure_policy(exception_name: str) -> FailurePolicy:
    """What follows from an exception of this class name. One without a row: `unclassified`, tried again and counted."""
    return _BY_NAME.get(exception_name.rpartition(".")[2], _UNCLASSIFIED)
