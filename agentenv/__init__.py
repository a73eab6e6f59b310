"""RL training environments for LLM agents that use tools.

Subclass `AgentEnv`, say what a task is and what a result is worth, and run `process` on it. `env.py` is the file to
read first.
"""

from agentenv.collected import CollectedGroup
from agentenv.config import AgentEnvConfig, BaseEnvConfig
from agentenv.env import AgentEnv
from agentenv.errors import (
    AgentEnvError,
    ConfigError,
    ContextLengthError,
    NotStartedError,
    PolicyError,
    PolicyRequestError,
    PolicyTimeoutError,
    RunDirectoryError,
    TokensUnavailableError,
    VerifierError,
)
from agentenv.outcomes import Outcome, StopReason
from agentenv.policy.config import APIServerConfig
from agentenv.rollout import RolloutRecord, rollout
from agentenv.task import Task, Verdict, Verifier
from agentenv.types import (
    AgentConfig,
    AgentResult,
    AgentStep,
    Item,
    ScoredDataGroup,
    ScoredDataItem,
)
from agentenv_backends.errors import BackendError, InfrastructureError
from agentenv_tools import Tool, ToolCall, ToolRegistry, ToolResult, ToolSchema, tool

__all__ = [
    "APIServerConfig",
    "AgentConfig",
    "AgentEnv",
    "AgentEnvConfig",
    "AgentEnvError",
    "AgentResult",
    "AgentStep",
    "BackendError",
    "BaseEnvConfig",
    "CollectedGroup",
    "ConfigError",
    "ContextLengthError",
    "InfrastructureError",
    "Item",
    "NotStartedError",
    "Outcome",
    "PolicyError",
    "PolicyRequestError",
    "PolicyTimeoutError",
    "RolloutRecord",
    "RunDirectoryError",
    "ScoredDataGroup",
    "ScoredDataItem",
    "StopReason",
    "Task",
    "TokensUnavailableError",
    "Tool",
    "ToolCall",
    "ToolRegistry",
    "ToolResult",
    "ToolSchema",
    "Verdict",
    "Verifier",
    "VerifierError",
    "__version__",
    "rollout",
    "tool",
]

__version__ = "0.1.0"
