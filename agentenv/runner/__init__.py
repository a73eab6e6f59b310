"""Running task directories with a model: `AgentRunner` for one, `ParallelRunner` for many.

    result = await AgentRunner("tasks/sort-lines", model="claude-sonnet-4-20250514").run()

On top of `agentenv.tasks`, which runs and judges, and `agentenv.models`, which knows the providers.
"""

from agentenv.runner.agent_runner import DEFAULT_MODEL, AgentRunner
from agentenv.runner.parallel import ParallelRunner
from agentenv.runner.results import BatchResult, RunResult, TaskResult
from agentenv.tasks import discover_tasks

__all__ = [
    "DEFAULT_MODEL",
    "AgentRunner",
    "BatchResult",
    "ParallelRunner",
    "RunResult",
    "TaskResult",
    "discover_tasks",
]
