"""`python -m agentenv_environments.task_set`: this environment's command line."""

from agentenv_environments.task_set.environment import TaskSet

if __name__ == "__main__":
    TaskSet.cli()
