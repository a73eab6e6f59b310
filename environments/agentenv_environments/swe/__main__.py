"""`python -m agentenv_environments.swe process`."""

from agentenv_environments.swe.environment import Swe

if __name__ == "__main__":
    Swe.cli()
