"""`python -m agentenv_environments.shell_tasks process`."""

from agentenv_environments.shell_tasks.environment import ShellTasks

if __name__ == "__main__":
    ShellTasks.cli()
