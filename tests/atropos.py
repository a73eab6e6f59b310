"""The real atroposlib in a virtual environment of its own, or the reason why there is none.

    from tests.atropos import ATROPOS_PYTHON, needs_atropos

    pytestmark = needs_atropos

`scripts/atropos-venv.sh` makes it. Without it such tests skip with the reason; where AGENTENV_REQUIRE_ATROPOS=1 they
fail.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VENV = "AGENTENV_ATROPOS_VENV"
ATROPOS_PYTHON = ROOT / os.environ.get(VENV, ".venv-atropos") / "bin" / "python"
VERSION = "0.4.0"
_REQUIRED = os.environ.get("AGENTENV_REQUIRE_ATROPOS") == "1"
_ASK_VERSION = "import importlib.metadata as m; print(m.version('atroposlib'))"


@cache
def why_no_atropos() -> str:
    """The reason why the real atroposlib cannot be run here; empty when it can."""
    if not ATROPOS_PYTHON.exists():
        return f"no atroposlib: {ATROPOS_PYTHON} does not exist (scripts/atropos-venv.sh --force makes it, or {VENV})"
    command = (str(ATROPOS_PYTHON), "-c", _ASK_VERSION)
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = asked.stdout.strip()
    if found != VERSION:
        return f"{ATROPOS_PYTHON} has atroposlib {found or 'not at all'}, not {VERSION}"
    return ""


@pytest.fixture(scope="session")
def atropos() -> None:
    """Skips, or fails, what needs the real atroposlib where there is none."""
    reason = why_no_atropos()
    if reason and _REQUIRED:
        pytest.fail(f"AGENTENV_REQUIRE_ATROPOS=1, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


needs_atropos = pytest.mark.usefixtures("atropos")
