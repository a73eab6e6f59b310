"""A real Docker engine for tests, or the reason why there is none.

    from tests.docker_engine import IMAGE, needs_engine

    pytestmark = [pytest.mark.docker, needs_engine]

Without an engine, or without the image, such tests skip with the reason; where AGENTENV_REQUIRE_DOCKER=1 they fail.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
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
PROBE = "/probe"
"""In the image of `busybox_image`: a folder with a python3, which is the one that was brought along."""
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


@pytest.fixture(scope="session")
def busybox_image(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with /bin/sh, busybox's other programs, and nothing else; in no folder of PATH, `PROBE` is a python3."""
    busybox = shutil.which("busybox")
    if busybox is None or b"/ld-" in Path(busybox).read_bytes()[:4096]:
        reason = "no static busybox is installed (`apt-get install busybox-static`)"
        if _REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("busybox")
    _fill(root, busybox)
    name = f"agentenv-test-busybox:{os.getpid()}"
    archive = root.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(root, ".")
    subprocess.run(["docker", "import", archive, name], check=True, capture_output=True)
    yield name
    asyncio.run(_remove(name))


def _fill(root: Path, busybox: str) -> None:
    (root / "bin").mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    for program in {*listed.stdout.split()} - {"busybox"}:
        (root / "bin" / program).symlink_to("busybox")
    probe = root / PROBE.removeprefix("/")
    probe.mkdir()
    with zipfile.ZipFile(probe / "more.zip", "w", zipfile.ZIP_DEFLATED) as more:
        library = Path(os.__file__).parent
        for path in (
            *library.glob("*.py"),
            *library.glob("urllib/*.py"),
            *library.glob("pathlib/*.py"),
        ):
            more.write(path, path.relative_to(library))
    from agentenv_backends.docker.bringing import BROUGHT

    command = shlex.join(BROUGHT)
    (probe / "python3").write_text(
        f'#!/bin/sh\nPYTHONPATH={PROBE}/more.zip exec {command} "$@"\n', encoding="utf-8"
    )
    (probe / "python3").chmod(0o755)


async def _remove(name: str) -> None:
    """The image, and what was made of it."""
    from agentenv_backends.config import DockerConfig
    from agentenv_backends.docker.bringing import bring_python
    from agentenv_backends.docker.engine import Engine

    async with Engine() as engine:
        image = await engine.find_image(name)
        assert image is not None
        await engine.remove_image(await bring_python(engine, DockerConfig(), image))
        await engine.remove_image(name)


needs_engine = pytest.mark.usefixtures("docker_engine")


def backend_param(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of a backend that a fixture is parametrised with, after what that backend needs is there."""
    settings: dict[str, Any] = request.param
    needed = {"docker": "docker_engine", "modal": "modal_service"}
    if settings["type"] in needed:
        request.getfixturevalue(needed[settings["type"]])
    return settings
