"""RL training environments for LLM agents that use tools.

Subclass `AgentEnv`, say what a task is and what a result is worth, and run `process` on it. `env.py` is the file to
read first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "AgentRunner",
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
    "ParallelRunner",
    "PolicyError",
    "PolicyRequestError",
    "PolicyTimeoutError",
    "RolloutRecord",
    "RunDirectoryError",
    "RunResult",
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
    "discover_tasks",
    "rollout",
    "tool",
]

if TYPE_CHECKING:
    from agentenv.runner import AgentRunner, ParallelRunner, RunResult, discover_tasks

__version__ = "0.1.0"

_RUNNER = ("AgentRunner", "ParallelRunner", "RunResult", "discover_tasks")
"""Imported when they are first used: most who import this package run environments."""


def __getattr__(name: str) -> Any:
    if name not in _RUNNER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("agentenv.runner"), name)
