"""The errors of `agentenv`. Those of the layers below are in `agentenv_backends.errors` and `agentenv_tools.errors`.

AgentEnvError
├── ConfigError                 refused at start; names the key, the value and the way out   (ValueError)
├── NotStartedError             the environment was used before `setup`                      (RuntimeError)
├── PolicyError                 the inference engine failed: infrastructure, retried
│   ├── PolicyTimeoutError      no answer within the deadline                                (TimeoutError)
│   │   └── PausedTooLongError  nobody ended a pause (`agentenv.control`)
│   ├── RateLimitedError        the provider refuses more requests for now
│   ├── PolicyRequestError      the engine refused the request; a retry would not help
│   │   ├── PolicyAccessError   the key is refused, or may not use the model
│   │   │   └── ModelNotFoundError   the provider has no such model
│   │   └── BudgetExceededError the account's money or quota is used up
│   └── TokensUnavailableError  the engine returns no token ids or log-probs: refused for training
├── ContextLengthError          the prompt does not fit the context: a budget, not a failure
├── VerifierError               scoring raised, hung, or gave no finite number
├── NothingCollectedError       so many groups failed in a row that going on is pointless
├── SinkError                   a group cannot be given to a trainer that would train on it wrongly
├── GroupFilterError            a custom group filter raised or gave no answer (`agentenv.control`)
├── RunDirectoryError           the run directory cannot be used (locked, full, unreadable)  (OSError)
├── CheckpointError             an environment's state cannot be kept or read (`agentenv.serve`)
├── SweepError                  a sweep cannot be begun, gone on with, or read (`agentenv.evaluation`)
├── TrajectoryStoreError        the trajectory server's database cannot be read or written
└── ApiError                    a call of a trajectory server failed
    ├── ApiUnreachableError     no answer, or one that says to come again later               (ConnectionError)
    └── ApiRefusedError         refused for a reason that stays: do not send it again
        └── UnknownEnvError     the server does not know the environment: register again
"""


class AgentEnvError(Exception):
    """Base of every error this package raises."""


class ConfigError(AgentEnvError, ValueError):
    """The configuration cannot work."""


class NotStartedError(AgentEnvError, RuntimeError):
    """The environment was used before `setup` had started its backend."""


class PolicyError(AgentEnvError):
    """The inference engine failed. Infrastructure: it never becomes a score."""


class PolicyTimeoutError(PolicyError, TimeoutError):
    """The inference engine gave no answer within the deadline."""


class PolicyRequestError(PolicyError):
    """The engine refused the request, and would refuse it again."""


class RateLimitedError(PolicyError):
    """The provider of a model refuses more requests for now."""


class PolicyAccessError(PolicyRequestError):
    """The provider of a model refuses the key, or the key may not use the model."""


class ModelNotFoundError(PolicyAccessError):
    """The provider has no model of this name."""


class BudgetExceededError(PolicyRequestError):
    """The account's money or quota at the provider is used up. Waiting a little changes nothing."""


class TokensUnavailableError(PolicyError):
    """The engine does not return the token ids it sampled, or their log-probs."""


class ContextLengthError(AgentEnvError):
    """The prompt does not fit the model's context. The rollout ends with a spent token budget."""


class VerifierError(AgentEnvError):
    """Scoring raised, hung, or gave something that is no finite number."""


class RunDirectoryError(AgentEnvError, OSError):
    """The run directory cannot be used."""


class SweepError(AgentEnvError):
    """A sweep cannot be begun, gone on with, or read."""


class TrajectoryStoreError(AgentEnvError):
    """The trajectory server's database cannot be read or written. Nothing was acknowledged."""


class ApiError(AgentEnvError):
    """A call of a trajectory server failed."""


class ApiUnreachableError(ApiError, ConnectionError):
    """The trajectory server gave no answer, or one that says to come again later. Sending again is safe."""

    def __init__(self, message: str, retry_after_s: float | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """What the server asked for."""
        self.status = status
        """Of HTTP; 0 without an answer."""


class ApiRefusedError(ApiError):
    """The trajectory server refused a call, and would refuse it again."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class UnknownEnvError(ApiRefusedError):
    """The trajectory server does not know the environment: it has to register again."""


class SinkError(AgentEnvError):
    """A group cannot be given to a trainer without being trained on wrongly, or there is none to give."""
