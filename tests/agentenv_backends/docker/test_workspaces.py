"""Prepared workspaces that the engine keeps: which go, what is refused, and a later run that starts from one."""
# mypy: disable-error-code="no-untyped-call"

import asyncio
import io
import os
import secrets

import pytest

from agentenv_backends.config import DockerConfig
from agentenv_backends.docker import workspaces
from agentenv_backends.docker.engine import Engine, ImageEntry
from agentenv_backends.docker.workspaces import CONTENT_LABEL, KEY_LABEL, WorkspaceImages, beyond
from agentenv_backends.errors import EngineError
from agentenv_backends.host import KeptSnapshot
from agentenv_backends.requests import ExecRequest
from tests.docker_engine import needs_engine
from tests.waiting import WITHIN_S


def entry(name, size, used):
    return ImageEntry(f"sha256:{name}", name, size, used)


def names(images):
    return {image.name for image in images}


def test_those_used_longest_ago_go_first():
    images = [entry("old", 1, "2026-01"), entry("new", 1, "2026-03"), entry("middle", 1, "2026-02")]
    assert names(beyond(images, 2, 100, "new")) == {"old"}
    assert names(beyond(images, 3, 100, "new")) == set()


def test_size_counts_too_and_the_newest_stays_whatever_it_takes():
    images = [entry("small", 1, "2026-01"), entry("large", 50, "2026-02"), entry("it", 60, "2025")]
    assert names(beyond(images, 10, 100, "it")) == {"large"}
    assert names(beyond(images, 0, 1, "it")) == {"small", "large"}


def test_a_workspace_of_another_size_image_or_kind_of_container_is_another_one():
    configs = (DockerConfig(), DockerConfig(disk_mb=8), DockerConfig(slots=1))
    caches = [WorkspaceImages(config, "sha256:a") for config in configs]
    caches.append(WorkspaceImages(DockerConfig(), "sha256:b"))
    assert len({cache._digest("key") for cache in caches}) == len(caches)


# --- With an engine ---------------------------------------------------------------------------------

real = [pytest.mark.docker, needs_engine]


@pytest.fixture
async def cache():
    """One with a scope of its own; what it made is removed."""
    images = WorkspaceImages(DockerConfig(), secrets.token_hex(16))
    made = []
    digest_of = images._digest

    def digest(key):
        made.append(digest_of(key))
        return made[-1]

    images._digest = digest  # type: ignore[method-assign]
    yield images
    async with Engine() as engine:
        for each in made:
            image = await engine.find_image(f"{workspaces.REPOSITORY}:{each}")
            if image is not None:
                await engine.remove_image(image["Id"])


class TestWithAnEngine:
    pytestmark = real

    @pytest.mark.parametrize("size", [0, 10, 5_000_000])
    async def test_what_is_kept_comes_back_byte_for_byte(self, cache, size):
        kept = KeptSnapshot(os.urandom(size), b'{"a": "\xc3\xa4"}')
        await cache.store("key", kept)
        assert await cache.load("key") == kept
        assert await cache.load("other") is None

    async def test_another_image_or_kind_of_container_has_other_workspaces(self, cache):
        await cache.store("key", KeptSnapshot(b"x", b""))
        other_image = WorkspaceImages(DockerConfig(), "sha256:other")
        assert await other_image.load("key") is None

    async def test_the_newer_one_takes_the_place_of_the_older(self, cache):
        name = f"{workspaces.REPOSITORY}:{cache._digest('key')}"
        await cache.store("key", KeptSnapshot(b"old", b""))
        async with Engine() as engine:
            older = await engine.find_image(name)
            await cache.store("key", KeptSnapshot(b"new", b"n"))
            assert older is not None
            assert await engine.find_image(older["Id"]) is None
        assert await cache.load("key") == KeptSnapshot(b"new", b"n")

    async def test_an_image_whose_contents_are_not_what_its_label_says_is_not_used(self, cache):
        digest = cache._digest("key")
        forged = workspaces._packed(KeptSnapshot(b"forged", b"{}"))
        labels = {KEY_LABEL: digest, CONTENT_LABEL: "0" * 64}
        async with Engine() as engine:
            await engine.import_image(forged, workspaces.REPOSITORY, digest, labels, 30)
        assert await cache.load("key") is None

    async def test_an_image_under_the_name_without_our_files_is_not_used(self, cache):
        digest = cache._digest("key")
        labels = {KEY_LABEL: digest, CONTENT_LABEL: "0" * 64}
        async with Engine() as engine:
            await engine.import_image(
                io.BytesIO(bytes(1024)), workspaces.REPOSITORY, digest, labels, 30
            )
        assert await cache.load("key") is None

    async def test_cleanup_finds_what_is_kept(self, cache):
        await cache.store("key", KeptSnapshot(b"x", b""))
        found = await workspaces.clear(None, KEY_LABEL, remove=False)
        assert f"{workspaces.REPOSITORY}:{cache._digest('key')}" in {thing.name for thing in found}
        assert not any(thing.removed for thing in found)

    @pytest.mark.parametrize("slots", [1, 4])
    async def test_a_later_run_starts_from_what_an_earlier_one_prepared(self, ground, slots):
        key = secrets.token_hex(16)
        first = await ground(slots=slots, max_hosts=3)
        slot = await first.pool.acquire("set-up")
        await first.say(slot, "mkdir d; echo prepared > d/f; chmod 640 d/f; ln d/f d/g")
        snapshot = await first.pool.snapshot(slot)
        await first.pool.remember_snapshot(key, snapshot, b"note")
        await first.pool.drop_snapshot(snapshot)
        await first.pool.release(slot)
        await first.pool.stop()

        later = await ground(slots=slots, max_hosts=3)
        try:
            known = await later.pool.recall_snapshot(key)
            assert known is not None
            assert known.note == b"note"
            slots_of_two = [await later.pool.acquire(f"member {n}") for n in range(2)]
            for slot in slots_of_two:
                await later.pool.restore(slot, known.snapshot)
                shown = await later.say(slot, "cat d/f; stat -c '%a %h' d/g; echo mine >> d/f")
                assert shown == "prepared\n640 2\n"
        finally:
            cache = later.provider.snapshot_cache
            async with Engine() as engine:
                name = f"{workspaces.REPOSITORY}:{cache._digest(key)}"
                if (image := await engine.find_image(name)) is not None:
                    await engine.remove_image(image["Id"])

    async def test_a_run_on_an_engine_that_does_not_keep_goes_on(self, ground, monkeypatch):
        asked = asyncio.Event()

        async def refuse(*_args, **_more):
            asked.set()
            raise EngineError("no space left on device")

        monkeypatch.setattr(Engine, "import_image", refuse)
        made = await ground()
        slot = await made.pool.acquire("a")
        await made.pool.execute(slot, ExecRequest("echo x > f", 5))
        snapshot = await made.pool.snapshot(slot)
        await made.pool.remember_snapshot("key", snapshot, b"")
        await made.pool.drop_snapshot(snapshot)
        known = await made.pool.recall_snapshot("key")
        assert known is not None
        await made.pool.drop_snapshot(known.snapshot)
        await asyncio.wait_for(asked.wait(), WITHIN_S)
