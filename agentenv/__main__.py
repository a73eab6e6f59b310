"""`python -m agentenv`: the command line."""

from agentenv.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
