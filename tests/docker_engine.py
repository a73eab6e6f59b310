"""A real Docker engine for tests, or the reason why there is none.

    from tests.docker_engine import IMAGE, needs_engine

    pytestmark = [pytest.mark.docker, needs_engine]

Without an engine, or without the image, such tests skip with the reason; where AGENTENV_REQUIRE_DOCKER=1 they fail.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from tests.waiting import WITHIN_S

IMAGE = os.environ.get("AGENTENV_TEST_IMAGE", "agentenv-test:debian12")
"""It has python3, bash, tmux, less, vim and procps. `scripts/test-engine.sh start` makes it."""
DOCKER: dict[str, Any] = {
    "type": "docker",
    "image": IMAGE,
    "pull": "never",
    "memory_mb": 128,
    "disk_mb": 16,
    "tmp_mb": 8,
    "acquire_timeout_s": 120,
    "workspace_images": 0,
}
"""A small docker backend, as settings."""
_REQUIRED = os.environ.get("AGENTENV_REQUIRE_DOCKER") == "1"


def why_no_engine() -> str:
    """The reason why no container can be started here; empty when one can."""
    try:
        from agentenv_backends.docker.engine import Engine
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    from agentenv_backends.errors import EngineError

    async def look() -> str:
        async with asyncio.timeout(WITHIN_S), Engine() as engine:
            found = await engine.find_image(IMAGE)
            return "" if found else f"{engine.name} has no image {IMAGE} (AGENTENV_TEST_IMAGE)"

    try:
        return asyncio.run(look())
    except (EngineError, TimeoutError) as error:
        return f"no Docker engine answers: {error}"


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """Skips, or fails, what needs an engine where there is none."""
    reason = why_no_engine()
    if reason and _REQUIRED:
        pytest.fail(f"AGENTENV_REQUIRE_DOCKER=1, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


needs_engine = pytest.mark.usefixtures("docker_engine")


def backend_param(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of a backend that a fixture is parametrised with, after what that backend needs is there."""
    settings: dict[str, Any] = request.param
    needed = {"docker": "docker_engine", "modal": "modal_service"}
    if settings["type"] in needed:
        request.getfixturevalue(needed[settings["type"]])
    return settings
