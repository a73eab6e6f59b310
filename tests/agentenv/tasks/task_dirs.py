"""Small task directories for tests."""

from collections.abc import Mapping
from pathlib import Path

PASSING = "#!/bin/bash\necho 1 > /logs/verifier/reward.txt\n"
CHECKING = """#!/bin/bash
if [ "$(cat answer.txt 2>/dev/null)" = 42 ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
"""
"""Passes when answer.txt holds 42."""
SOLVING = "#!/bin/bash\necho 42 > answer.txt\n"
LOCAL = """schema_version = "1.4"
[metadata.agentenv]
host_image = true
[agent]
timeout_sec = 60.0
user = "nobody"
[verifier]
timeout_sec = 60.0
[environment]
docker_image = "some-image"
network_mode = "no-network"
memory_mb = 256
storage_mb = 64
"""
"""task.toml of a task that runs on every backend."""


def write_task(
    path: Path,
    toml: str = 'schema_version = "1.4"\n[environment]\ndocker_image = "some-image"\n',
    files: Mapping[str, str | bytes] | None = None,
    *,
    instruction: str | None = "Write 42 to answer.txt.\n",
    tests: str | None = CHECKING,
    solution: str | None = SOLVING,
) -> Path:
    """Write a task directory and return it; `files` by their paths in it."""
    own = {"task.toml": toml, "instruction.md": instruction}
    own |= {"tests/test.sh": tests, "solution/solve.sh": solution}
    for name, content in {**own, **(files or {})}.items():
        if content is None:
            continue
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
