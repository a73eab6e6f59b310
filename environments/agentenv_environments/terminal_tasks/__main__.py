"""`python -m agentenv_environments.terminal_tasks process`."""

from agentenv_environments.terminal_tasks.environment import TerminalTasks

if __name__ == "__main__":
    TerminalTasks.cli()
