"""Mathematics for an agent with a Python tool: arithmetic that is made by seed, or questions from a file."""
