"""What can go wrong with a task directory, by the names that the format's failure policy knows.

TaskError
├── TaskFormatError                the directory is no valid task                          (ValueError)
├── TaskUnsupportedError           valid, but not what this backend or agent can do
├── SandboxBuildFailedError        no image                                                (InfrastructureError)
├── EnvironmentStartTimeoutError   the sandbox was not there in time                       (InfrastructureError)
├── HealthcheckError               the environment never became healthy                    (InfrastructureError)
├── SetupCommandError              a command of `setup_commands` or `workdir/setup.sh` failed (InfrastructureError)
├── AgentSetupTimeoutError         the agent was not ready in time                         (InfrastructureError)
├── AddTestsDirError               the tests could not be put into the sandbox             (InfrastructureError)
├── DownloadVerifierDirError       what the tests wrote could not be fetched               (InfrastructureError)
├── VerifierTimeoutError           the test script did not end in time                     (VerifierError)
├── RewardFileNotFoundError        the test script wrote no reward                         (VerifierError)
├── RewardFileEmptyError           it wrote an empty one                                   (VerifierError)
├── VerifierOutputParseError       it wrote something that is no reward                    (VerifierError)
├── AgentTimeoutError              the agent's time ran out; its work is still judged
└── NonZeroAgentExitCodeError      the agent's program failed; its work is still judged
"""

from __future__ import annotations

from agentenv.errors import AgentEnvError, VerifierError
from agentenv_backends.errors import InfrastructureError


class TaskError(AgentEnvError):
    """Base of every error of task directories."""


class TaskFormatError(TaskError, ValueError):
    """The directory is no valid task. `problems` are all that were found, each with its place in front."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class TaskUnsupportedError(TaskError):
    """The task asks for something that this backend, or this agent, does not offer."""


class SandboxBuildFailedError(TaskError, InfrastructureError):
    """The task's image could not be pulled or built."""


class EnvironmentStartTimeoutError(TaskError, InfrastructureError):
    """The sandbox was not there within the build timeout."""


class HealthcheckError(TaskError, InfrastructureError):
    """The health check failed as often as it may."""


class SetupCommandError(TaskError, InfrastructureError):
    """A command that prepares the sandbox failed."""


class AgentSetupTimeoutError(TaskError, InfrastructureError):
    """The agent was not ready in time."""


class AddTestsDirError(TaskError, InfrastructureError):
    """The tests could not be put into the sandbox."""


class DownloadVerifierDirError(TaskError, InfrastructureError):
    """What the tests wrote could not be fetched."""


class VerifierTimeoutError(TaskError, VerifierError):
    """The test script did not end within the verifier's timeout."""


class RewardFileNotFoundError(TaskError, VerifierError):
    """The test script ended without writing a reward."""


class RewardFileEmptyError(TaskError, VerifierError):
    """The test script wrote a reward file with nothing in it."""


class VerifierOutputParseError(TaskError, VerifierError):
    """The test script wrote something that is no reward."""


class AgentTimeoutError(TaskError):
    """The agent's time ran out."""


class NonZeroAgentExitCodeError(TaskError):
    """The agent's program ended with a failure."""
