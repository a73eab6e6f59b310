"""What runs the tests, packed to be sent: pytest as it is installed here, and `sandbox/`.

A sandbox's image need not have pytest, and the agent cannot have changed what arrives after its end.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import tarfile
from functools import cache
from pathlib import Path

from agentenv import ConfigError
from agentenv_environments.swe.repositories import add_bytes

_DISTRIBUTIONS = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
_LEXERS = ("__init__.py", "_mapping.py", "diff.py", "python.py")
"""Of pygments' five hundred, those that pytest imports."""
_SANDBOX = Path(__file__).with_name("sandbox")


@cache
def supervisor() -> bytes:
    """The program that judges."""
    return (_SANDBOX / "supervise.py").read_bytes()


@cache
def tools() -> bytes:
    """tar.gz of pytest and of the program that runs it. Raises `ConfigError` where pytest is not installed."""
    if importlib.util.find_spec("pytest") is None:
        raise ConfigError(
            "swe sends pytest to the sandbox, and it is not installed here; install it with: "
            "pip install 'agentenv[swe]'"
        )
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        add_bytes(archive, "run_tests.py", (_SANDBOX / "run_tests.py").read_bytes())
        for distribution in _DISTRIBUTIONS:
            for file in importlib.metadata.files(distribution) or ():
                if _is_wanted(file):
                    add_bytes(archive, f"site/{file}", Path(str(file.locate())).read_bytes())
    return made.getvalue()


def _is_wanted(file: importlib.metadata.PackagePath) -> bool:
    if file.parts[0] == ".." or file.suffix != ".py":
        return False
    folder = file.parts[:-1]
    return folder != ("pygments", "lexers") or file.name in _LEXERS
