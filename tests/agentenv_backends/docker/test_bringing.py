"""The driver's Python in containers of an image that has none."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import io
import logging

import pytest

from agentenv_backends.docker import bringing, workspaces
from agentenv_backends.docker.bringing import PLACE, bring_python
from agentenv_backends.docker.engine import Engine
from tests.agentenv_backends.docker.real import small
from tests.docker_engine import IMAGE, needs_engine


def test_what_is_brought_is_the_interpreter_its_loader_and_what_the_server_imports():
    parts = bringing._examine()
    assert {"ld.so", "bin/python3"} <= set(parts.files)
    assert any(place.startswith("lib/libc.") for place in parts.files)
    modules = {name for name, _ in parts.sources.values()}
    assert {"os", "encodings", "runpy", "asyncio", "tarfile"} <= modules
    assert not any("agentenv" in name for name in modules)
    assert parts.digest() == bringing._examine().digest()


def test_a_python_that_is_too_large_is_not_brought(monkeypatch):
    monkeypatch.setattr(bringing, "_MOST_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="over 1 MB"):
        bringing._pack(bringing._examine(), "FROM x\n", io.BytesIO())


@pytest.mark.docker
@pytest.mark.slow
@needs_engine
class TestInContainers:
    @pytest.mark.parametrize("slots", [1, 3])
    async def test_commands_find_it_nowhere_and_cannot_change_it(
        self, ground, busybox_image, slots, caplog
    ):
        caplog.set_level(logging.INFO, "agentenv_backends")
        made = await ground(image=busybox_image, slots=slots)
        assert f"{busybox_image} run their server by a copy of this machine's Python" in caplog.text
        slot = await made.pool.acquire("a")
        assert await made.say(slot, "command -v python3 || echo none") == "none\n"
        assert await made.say(slot, "env | grep ^LD_ || echo none") == "none\n"
        assert await made.say(slot, f"touch {PLACE}/x 2>/dev/null || echo no") == "no\n"
        assert await made.say(slot, "echo 6 > six; expr $(cat six) \\* 7") == "42\n"

    async def test_a_root_of_its_own_container_works_by_it_and_what_the_image_preloads_does_not_matter(
        self, ground, docker, busybox_image, tmp_path
    ):
        dockerfile = tmp_path / "Dockerfile"
        dockerfile.write_text(
            f"FROM {busybox_image}\nENV LD_PRELOAD=/bin/busybox LD_LIBRARY_PATH=/bin\n"
        )
        more = {"slots": 1, "run_as_root": True, "read_only_root": False, "image_variables": True}
        made = await ground(dockerfile=dockerfile, pull="missing", max_hosts=1, **more)
        slot = await made.pool.acquire("a")
        assert await made.say(slot, "id -u; echo $LD_LIBRARY_PATH; echo x > /new; cat /new") == (
            "0\n/bin\nx\n"
        )
        brought = (await made.container(slot).show())["Image"]
        await made.pool.stop()
        copied = (await docker.images.inspect(brought))["Parent"]
        built = (await docker.images.inspect(copied))["Parent"]
        for image in (brought, built):
            await docker.images.delete(image, force=True)

    async def test_the_way_out_works_by_it(self, ground, busybox_image):
        made = await ground(
            image=busybox_image, allow_network=True, network_allow_list=("example.org",)
        )
        slot = await made.pool.acquire("a")
        answer = await made.run(slot, "wget -O - http://127.0.0.2:9/ 2>&1")
        assert "403" in answer.stdout.text(), answer

    async def test_an_image_with_python_is_used_as_it_is_unless_told(self, ground, docker):
        made = await ground(image=IMAGE)
        slot = await made.pool.acquire("a")
        assert await made.say(slot, f"ls -d {PLACE} 2>/dev/null || echo none") == "none\n"
        told = await ground(image=IMAGE, python="bring")
        slot = await told.pool.acquire("a")
        assert await told.say(slot, f"ls -d {PLACE}") == f"{PLACE}\n"
        brought = (await told.container(slot).show())["Image"]
        await told.pool.stop()
        await docker.images.delete(brought, force=True)

    async def test_drivers_at_the_same_time_share_one_image_that_cleanup_finds(self, busybox_image):
        async with Engine() as engine:
            image = await engine.find_image(busybox_image)
            assert image is not None
            bringings = (bring_python(engine, small(), image) for _ in range(3))
            (found,) = set(await asyncio.gather(*bringings))
            assert found in {kept.image_id for kept in await engine.list_images(bringing.LABEL)}
            description = await engine.find_image(found)
            assert description is not None
        leftovers = await workspaces.clear(None, bringing.LABEL, remove=False)
        assert {*description["RepoTags"]} & {leftover.name for leftover in leftovers}
