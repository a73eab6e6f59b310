"""Task directories: a task.toml, an instruction, tests - in Harbor's format, or as `AgentRunner` has them.

    task = load_task("tasks/sort-lines")
    result = await run_task(task, agent=oracle_agent(), provider="local")

models.py         the tables of task.toml; rules.py: single values in it
loader.py         a directory as a `TaskDirectory`, with everything that is wrong with it
compose.py        services beside the sandbox; compose_tables.py, compose_values.py: how they are written
running.py        `run_task` and what it leaves; rolling.py: the rollout, on top of `agentenv.rollout`
stepping.py       steps as one rollout; preparation.py and verification.py: before and after the agent
backend_values.py an `[environment]` as a backend's configuration; places.py: such a backend in use
place_pool.py     backends that several runs share
lock.py           what a run was made of, to compare it with others
failures.py       whose failure it was, and what follows
"""

from agentenv.tasks.agents import SessionRequest, TaskAgent, nop_agent, oracle_agent
from agentenv.tasks.checking import TaskCheck, check_task
from agentenv.tasks.directory import Profile, StepInput, TaskDirectory
from agentenv.tasks.errors import TaskError, TaskFormatError, TaskUnsupportedError
from agentenv.tasks.failures import FailureCause, FailurePolicy, failure_policy
from agentenv.tasks.loader import discover_tasks, load_task
from agentenv.tasks.options import RunOptions
from agentenv.tasks.place_pool import PlacePool
from agentenv.tasks.results import TaskResult, TrajectoryItem
from agentenv.tasks.running import run_task
from agentenv.tasks.under_way import TaskRun

__all__ = [
    "FailureCause",
    "FailurePolicy",
    "PlacePool",
    "Profile",
    "RunOptions",
    "SessionRequest",
    "StepInput",
    "TaskAgent",
    "TaskCheck",
    "TaskDirectory",
    "TaskError",
    "TaskFormatError",
    "TaskResult",
    "TaskRun",
    "TaskUnsupportedError",
    "TrajectoryItem",
    "check_task",
    "discover_tasks",
    "failure_policy",
    "load_task",
    "nop_agent",
    "oracle_agent",
    "run_task",
]
