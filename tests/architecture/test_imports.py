"""What starting a program loads: a library is paid for in time and memory by what uses it, not by everything."""

import json
import subprocess
import sys

import pytest

EXTRAS = (
    "aiodocker",
    "boto3",
    "matplotlib",
    "mcp",
    "modal",
    "pydantic_ai",
    "torch",
    "trl",
    "wandb",
)
"""Of which a bare installation has none."""
MODEL_LIBRARIES = ("renderers", "transformers")
SERVERS_AND_CLIENTS = ("aiohttp", "httpx", "starlette", "uvicorn")
NEEDED_LATER = (*EXTRAS, *MODEL_LIBRARIES, *SERVERS_AND_CLIENTS, "numpy")
SWEEP = ("runner", "samples", "sources", "spec", "store")
"""The modules of `agentenv.evaluation` that take and keep samples; `numpy` comes with what sums them up."""


def loaded(statement: str, candidates: tuple[str, ...]) -> list[str]:
    """Which of the candidates a fresh interpreter has loaded after a statement."""
    program = f"{statement}; import json, sys; print(json.dumps([m for m in {candidates} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("statement", "unneeded"),
    [
        pytest.param("import agentenv", (*NEEDED_LATER, "jinja2", "rich", "pyte"), id="framework"),
        pytest.param("import agentenv.cli.main", (*NEEDED_LATER, "jinja2", "pyte"), id="commands"),
        pytest.param(
            "; ".join(f"import agentenv.evaluation.{name}" for name in SWEEP),
            (*NEEDED_LATER, "jinja2", "rich", "pyte"),
            id="sweeps",
        ),
    ],
)
def test_what_is_needed_later_or_elsewhere_is_not_loaded(statement: str, unneeded: tuple[str, ...]):
    assert loaded(statement, unneeded) == []
