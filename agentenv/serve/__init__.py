"""Feeding a trainer through a trajectory server: `serve`, and `open_link` to the server of a configuration."""

from agentenv.serve.link import Link, open_link
from agentenv.serve.service import serve

__all__ = ["Link", "open_link", "serve"]
