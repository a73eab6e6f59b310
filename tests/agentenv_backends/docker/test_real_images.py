"""Images of a real engine: missing, without Python, and built."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import os
import random
import subprocess
import tarfile

import pytest

from agentenv_backends.docker.bringing import bring_python
from agentenv_backends.docker.engine import Engine
from agentenv_backends.docker.provider import DockerProvider
from agentenv_backends.errors import BackendUnavailableError
from tests.agentenv_backends.docker.real import Ground, existing, small
from tests.docker_engine import IMAGE, needs_engine

pytestmark = [pytest.mark.docker, pytest.mark.slow, needs_engine]


@pytest.fixture
async def bare_image(docker, tmp_path):
    """An image with one file in it, and no python3."""
    (tmp_path / "hello").write_text("hello")
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        tar.add(tmp_path / "hello", "hello")
    name = f"agentenv-test-bare:{os.getpid()}"
    subprocess.run(
        ["docker", "import", tmp_path / "bare.tar", name], check=True, capture_output=True
    )
    yield name
    await docker.images.delete(name, force=True)


async def test_an_image_without_python_is_refused_with_the_way_out(bare_image):
    provider = DockerProvider(small(image=bare_image, python="image"))
    with pytest.raises(BackendUnavailableError, match=rf"{bare_image} has no python3"):
        await provider.prepare()
    assert not set(provider.container_names.values()) & await existing()


async def test_an_image_without_a_shell_is_refused_with_the_way_out(bare_image):
    provider = DockerProvider(small(image=bare_image))
    with pytest.raises(BackendUnavailableError, match=rf"{bare_image} has no /bin/sh"):
        await provider.prepare()
    async with Engine() as engine:
        image = await engine.find_image(bare_image)
        assert image is not None
        await engine.remove_image(await bring_python(engine, small(), image))


async def test_a_missing_image_is_refused_with_the_engines_words():
    with pytest.raises(BackendUnavailableError, match=r"docker pull agentenv-test:nowhere"):
        await DockerProvider(small(image="agentenv-test:nowhere")).prepare()
    with pytest.raises(
        BackendUnavailableError,
        match=r"did not pull image 127\.0\.0\.1:1/no:1: .+image: .*pull: .always.*docker login",
    ):
        await DockerProvider(small(image="127.0.0.1:1/no:1", pull="always")).prepare()


async def test_an_image_is_built_once_for_the_same_content(docker, tmp_path):
    dockerfile, folder = tmp_path / "Dockerfile", tmp_path / "context"
    folder.mkdir()
    dockerfile.write_text(f"FROM {IMAGE}\nARG word\nCOPY greeting /greeting\nENV WORD=$word\n")
    (folder / "greeting").write_text("hello")
    (folder / "secret").write_text("x")
    (folder / ".dockerignore").write_text("secret\n")
    more = {"dockerfile": dockerfile, "build_context": folder, "pull": "missing"}
    built = set()
    try:
        for word, greeting in (("a", "hello"), ("a", "hello"), ("b", "hello"), ("b", "bye")):
            (folder / "greeting").write_text(greeting)
            os.utime(folder / "greeting", (random.randrange(1 << 30), 0))
            here = Ground(small(**more, build_args={"word": word}), docker)
            async with here.pool:
                slot = await here.pool.acquire("a")
                assert (
                    await here.say(slot, "cat /greeting; ls /secret 2>/dev/null; true") == greeting
                )
                built.add((await here.container(slot).show())["Image"])
        assert len(built) == 3
    finally:
        for image in built:
            await docker.images.delete(image, force=True)


async def test_a_build_that_fails_is_told_in_the_engines_words(tmp_path):
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {IMAGE}\nCOPY nothing /\n")
    with pytest.raises(BackendUnavailableError, match=r"did not build image .*nothing"):
        await DockerProvider(small(dockerfile=dockerfile, pull="missing")).prepare()
