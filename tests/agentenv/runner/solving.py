"""Fake models that solve tasks, and tasks in `AgentRunner`'s form."""

from agentenv.testing import FakePolicy

TASK = """version = "1.0"
[metadata.agentenv]
host_image = true
[agent]
user = "nobody"
[environment]
docker_image = "some-image"
network_mode = "no-network"
memory_mb = 256
storage_mb = 64
setup_commands = ["echo 42 > given.txt"]
"""
SOLVE = '<tool_call>{"name": "bash", "arguments": {"command": "cp given.txt answer.txt && echo copied"}}</tool_call>'
WRITE = (
    '<tool_call>{"name": "editor", "arguments": '
    '{"command": "create", "path": "answer.txt", "file_text": "41\\n"}}</tool_call>'
)
FIX = (
    '<tool_call>{"name": "editor", "arguments": '
    '{"command": "str_replace", "path": "answer.txt", "old_str": "41", "new_str": "42"}}</tool_call>'
)


def chat(*replies: str) -> FakePolicy:
    """A policy that gives these replies to every trajectory, as text."""
    return FakePolicy(list(replies), returns_tokens=False)
