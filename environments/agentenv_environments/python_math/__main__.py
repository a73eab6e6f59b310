"""`python -m agentenv_environments.python_math process`."""

from agentenv_environments.python_math.environment import PythonMath

if __name__ == "__main__":
    PythonMath.cli()
