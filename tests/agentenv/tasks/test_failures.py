import pytest

from agentenv.tasks import FailureCause, errors, failure_policy
from agentenv.tasks.errors import TaskError
from agentenv.tasks.failures import FailurePolicy

EXPECTED = {
    ("sandbox_failed", True, False): [
        "EnvironmentStartTimeoutError", "SandboxBuildFailedError", "AgentSetupTimeoutError", "HealthcheckError",
        "AddTestsDirError", "DownloadVerifierDirError", "HostLostError", "SlotLostError",
    ],
    ("model_provider_failed", True, True): ["PolicyError", "PolicyTimeoutError", "RateLimitError"],
    ("model_provider_failed", False, True): ["PolicyRequestError", "BadRequestError", "BudgetExceededError"],
    ("model_provider_failed", False, False): ["AuthenticationError", "PermissionDeniedError"],
    ("harbor_failed", False, False): ["TaskUnsupportedError", "CapabilityError", "ConfigError"],
    ("unclassified", True, True): ["NonZeroAgentExitCodeError", "SomethingElse", "agentenv.x.KeyError"],
    ("agent_exhausted_budget", False, True): ["AgentTimeoutError", "ContextLengthExceededError", "SlotExhaustedError"],
    ("agent_refused_task", False, True): ["AgentRefusedError"],
    ("verifier_failed", False, True): [
        "VerifierTimeoutError", "RewardFileNotFoundError", "RewardFileEmptyError", "VerifierOutputParseError",
    ],
    ("cancelled", False, False): ["CancelledError"],
}  # fmt: skip
CASES = [(name, *policy) for policy, names in EXPECTED.items() for name in names]


@pytest.mark.parametrize(("name", "cause", "retry", "grade"), CASES)
def test_what_follows_from_an_exception(name, cause, retry, grade):
    assert failure_policy(name) == FailurePolicy(FailureCause(cause), retry=retry, grade=grade)


def test_every_error_of_task_directories_has_a_row():
    unclassified = {"TaskError", "NonZeroAgentExitCodeError"}
    names = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, TaskError)}
    missing = {n for n in names if failure_policy(n).cause is FailureCause.UNCLASSIFIED}
    assert missing <= unclassified
