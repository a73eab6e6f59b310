"""The errors of `agentenv`. Those of the layers below are in `agentenv_backends.errors` and `agentenv_tools.errors`.

AgentEnvError
├── ConfigError                 refused at start; names the key, the value and the way out   (ValueError)
├── NotStartedError             the environment was used before `setup`                      (RuntimeError)
├── PolicyError                 the inference engine failed: infrastructure, retried
│   ├── PolicyTimeoutError      no answer within the deadline                                (TimeoutError)
│   │   └── PausedTooLongError  nobody ended a pause (`agentenv.control`)
│   ├── PolicyRequestError      the engine refused the request; a retry would not help
│   └── TokensUnavailableError  the engine returns no token ids or log-probs: refused for training
├── ContextLengthError          the prompt does not fit the context: a budget, not a failure
├── VerifierError               scoring raised, hung, or gave no finite number
├── SinkError                   a group cannot be given to a trainer that would train on it wrongly
├── GroupFilterError            a custom group filter raised or gave no answer (`agentenv.control`)
└── RunDirectoryError           the run directory cannot be used (locked, full, unreadable)  (OSError)
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


class TokensUnavailableError(PolicyError):
    """The engine does not return the token ids it sampled, or their log-probs."""


class ContextLengthError(AgentEnvError):
    """The prompt does not fit the model's context. The rollout ends with a spent token budget."""


class VerifierError(AgentEnvError):
    """Scoring raised, hung, or gave something that is no finite number."""


class RunDirectoryError(AgentEnvError, OSError):
    """The run directory cannot be used."""


class SinkError(AgentEnvError):
    """A group cannot be given to a trainer without being trained on wrongly, or there is none to give."""
