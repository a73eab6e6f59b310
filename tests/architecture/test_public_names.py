"""What `import agentenv` promises. A change here is a change of the interface."""

import agentenv

PROMISED = {
    "AgentEnv", "AgentEnvConfig", "BaseEnvConfig", "AgentConfig", "AgentStep", "AgentResult", "APIServerConfig",
    "Item", "ScoredDataItem", "ScoredDataGroup", "Tool", "tool", "ToolSchema", "ToolCall", "ToolResult",
    "ToolRegistry", "Outcome", "StopReason", "RolloutRecord", "rollout", "Task", "Verdict", "Verifier",
    "AgentEnvError", "ConfigError", "NotStartedError", "PolicyError", "PolicyTimeoutError", "PolicyRequestError",
    "TokensUnavailableError", "ContextLengthError", "VerifierError", "RunDirectoryError", "BackendError",
    "InfrastructureError", "CollectedGroup", "__version__", "AgentRunner", "ParallelRunner", "RunResult",
    "discover_tasks",
}  # fmt: skip


def test_the_public_names_are_exactly_these():
    assert set(agentenv.__all__) == PROMISED


def test_every_public_name_is_there():
    for name in agentenv.__all__:
        assert getattr(agentenv, name) is not None
