"""Atropos' own tests of its server, unchanged out of its wheel, against ours: they ask for port 8000 of localhost."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.atropos import ATROPOS_PYTHON, needs_atropos
from tests.interop.servers import AgentEnvServer

pytestmark = [pytest.mark.slow, needs_atropos]
PORT = 8000
FILES = ("test_api_legacy.py", "test_api_messages_handling.py", "test_api_compression.py")
_FIND_TESTS = "import atroposlib.tests as t; print(list(t.__path__)[0])"
_OPTIONS = ("-q", "-c", os.devnull, "-p", "no:cacheprovider")
"""Nothing of this project's own settings for tests."""
_WITHIN_S = 120.0


def port_is_free() -> bool:
    """Whether anything of this machine may listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            return False
    return True


def test_the_tests_that_atropos_has_for_its_server_pass_against_ours(tmp_path: Path):
    if not port_is_free():
        pytest.skip(f"something else listens on port {PORT}")
    found = subprocess.run(
        (str(ATROPOS_PYTHON), "-c", _FIND_TESTS), capture_output=True, text=True, check=True
    )
    folder = Path(found.stdout.strip())
    files = [str(folder / name) for name in FILES]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "localhost"}
    environment.pop("PYTHONPATH", None)
    # One of them sends four advantages for three tokens, which ours only takes when told to.
    with AgentEnvServer(tmp_path, "--accept-misaligned-advantages", port=PORT):
        done = subprocess.run(
            (str(ATROPOS_PYTHON), "-m", "pytest", *_OPTIONS, *files),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_WITHIN_S,
        )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "36 passed" in done.stdout
