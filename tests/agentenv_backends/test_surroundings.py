"""What slots have beside their workspace: folders at fixed paths, variables, and an image's own directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentenv_backends.base import Backend, Slot
from agentenv_backends.config import parse_backend_config
from agentenv_backends.errors import BackendConfigError
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from tests.docker_engine import DOCKER, backend_param
from tests.modal_service import MODAL

FOLDERS = ("/logs/agent", "/tests")
OWN = {"folders": FOLDERS, "variables": {"COLOUR": "red", "HOME": "/tests"}}
ALONE = DOCKER | OWN | {"slots": 1}
ROOT = ALONE | {"run_as_root": True, "read_only_root": False}
PLAIN = ALONE | {"read_only_root": False, "workspace": None}


@pytest.fixture(
    params=[
        pytest.param(OWN | {"type": "local", "slots": 2}, id="local", marks=pytest.mark.sandbox),
        pytest.param(ALONE, id="docker", marks=pytest.mark.docker),
        pytest.param(ROOT, id="docker-root", marks=pytest.mark.docker),
        pytest.param(PLAIN, id="docker-plain", marks=pytest.mark.docker),
        pytest.param(MODAL | OWN | {"slots": 1}, id="modal", marks=pytest.mark.sandbox),
    ]
)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of each backend that offers them."""
    return backend_param(request)


@asynccontextmanager
async def started(settings: dict[str, Any]) -> AsyncIterator[Backend]:
    backend = parse_backend_config(settings).build()
    try:
        await backend.start()
        yield backend
    finally:
        await backend.stop()


async def said(backend: Backend, slot: Slot, command: str) -> str:
    result = await backend.execute(slot, ExecRequest(command))
    assert isinstance(result, ExecResult)
    return result.stdout.text() + result.stderr.text()


async def test_folders_are_a_slots_own_and_empty_for_the_next(settings):
    async with started(settings) as backend:
        for number in range(2):
            slot = await backend.acquire(f"t{number}", timeout_s=120)
            before = await said(backend, slot, "ls -A /logs/agent /tests")
            assert before == "/logs/agent:\n\n/tests:\n"
            fill = "for d in /logs/agent /tests; do mkdir $d/x && echo y > $d/x/y && chmod 000 $d/x || exit; done"
            assert await said(backend, slot, fill) == ""
            await backend.release(slot)


async def test_variables_reach_every_command_and_win(settings):
    async with started(settings) as backend:
        slot = await backend.acquire("t", timeout_s=120)
        assert await said(backend, slot, 'echo "$COLOUR $HOME"') == "red /tests\n"
        await backend.release(slot)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.usefixtures("docker_engine")
async def test_an_images_own_directory_and_variables_are_the_slots(tmp_path):
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        f"FROM {DOCKER['image']}\nENV SHADE=dark COLOUR=blue\nWORKDIR /app\n"
        "RUN mkdir -p deep && echo kept > deep/file && chmod 700 deep\n"
    )
    settings = PLAIN | {"dockerfile": dockerfile, "image_variables": True, "pull": "missing"}
    async with started(settings) as backend:
        slot = await backend.acquire("t", timeout_s=120)
        command = (
            "pwd; cat deep/file; echo new > deep/file && cat deep/file; echo $SHADE $COLOUR; id -un"
        )
        assert await said(backend, slot, command) == "/app\nkept\nnew\ndark red\nagent\n"
        await backend.release(slot)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"type": "local", "folders": ["logs"]}, "absolute path"),
        ({"type": "local", "folders": ["/"]}, "absolute path"),
        ({"type": "local", "folders": ["/a/../b"]}, "absolute path"),
        ({"type": "local", "variables": {"A=B": "x"}}, "environment variable"),
        (
            {"type": "local", "isolation": "none", "allow_network": True, "folders": ["/x"]},
            "isolation 'none'",
        ),
        ({"type": "docker", "folders": ["/x"]}, "need slots 1"),
        ({"type": "docker", "slots": 1, "workspace": None}, "read_only_root"),
        ({"type": "docker", "slots": 1, "workspace": "app"}, "absolute path"),
        ({"type": "docker", "root_disk_mb": 5}, "root_disk_mb .* read_only_root"),
        ({"type": "modal", "folders": ["/x"]}, "need slots 1"),
        ({"type": "modal", "workspace": None}, "need slots 1"),
        ({"type": "modal", "slots": 1, "workspace": "app"}, "absolute path"),
        ({"type": "modal", "build_context": "x"}, "which dockerfile"),
        ({"type": "modal", "network_allow_list": ["a.b"]}, "allow_network is false"),
        ({"type": "nomad", "slots": 1, "folders": ["/x"]}, "set it to false"),
        ({"type": "nomad", "read_only_root": False}, "needs slots 1"),
        ({"type": "nomad", "slots": 1, "workspace": "/app"}, "needs read_only_root false"),
        ({"type": "nomad", "driver": "exec", "image_variables": True}, "docker and podman"),
        ({"type": "nomad", "driver": "exec", "isolation": "user", "folders": ["/x"]}, "folders need slots 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_is_refused(values, told):
    with pytest.raises(BackendConfigError, match=told):
        parse_backend_config(values)


def test_variables_do_not_show_in_what_is_printed_of_a_config():
    config = parse_backend_config({"type": "local", "variables": {"KEY": "very-secret"}})
    assert "very-secret" not in repr(config)
