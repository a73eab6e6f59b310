"""Launching containers from an engine that fails, hangs and lies."""
# mypy: disable-error-code="no-untyped-call"

import asyncio

import pytest

from agentenv_backends.config import DockerConfig
from agentenv_backends.docker import engine as engine_module
from agentenv_backends.docker import provider as provider_module
from agentenv_backends.docker.engine import Engine
from agentenv_backends.docker.provider import DockerProvider
from agentenv_backends.errors import (
    BackendStoppedError,
    BackendUnavailableError,
    CapabilityError,
    EngineError,
    HostLostError,
    HostStartError,
)
from agentenv_backends.sandboxd import frames
from tests.agentenv_backends.docker.fake_engine import after, running_engine, status


@pytest.fixture
async def engine(tmp_path):
    async with running_engine(tmp_path) as engine:
        yield engine


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(provider_module, "_FIRST_PAUSE_S", 0.01)


def config(engine, **more):
    values = {"image": "tools:1", "slots": 2, "docker_host": engine.url, "pull": "never"}
    return DockerConfig(**values | more)


async def prepared(engine, **more):
    provider = DockerProvider(config(engine, **more))
    await provider.prepare()
    engine.calls.clear()
    return provider


async def test_a_host_is_a_container_that_is_gone_when_it_is_closed(engine):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    (container,) = engine.containers.values()
    assert container.name == provider.container_names["h1"]
    assert container.state == "running"
    assert engine.calls == ["version", "create", "attach", "start"]
    await host.ping()
    await host.close()
    await host.close()
    assert not engine.containers


async def test_the_container_receives_the_server_over_its_stream(engine):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    (container,) = engine.containers.values()
    assert container.main.program[8:].startswith(b"#!/usr/bin/env python3\nPK")
    assert "Binds" not in container.options["HostConfig"]
    await host.close()


async def test_nothing_is_launched_before_prepare(engine):
    with pytest.raises(BackendStoppedError, match="prepare"):
        await DockerProvider(config(engine)).launch("h1")


@pytest.mark.parametrize("storage", ["xfs", "extfs"])
async def test_what_a_container_may_write_is_limited_where_the_storage_can(engine, storage):
    engine.storage = storage
    more = {"slots": 1, "read_only_root": False, "root_disk_mb": 100}
    provider = DockerProvider(config(engine, **more))
    assert (await provider.prepare()).disk_limit is (storage == "xfs")
    host = await provider.launch("h1")
    (container,) = engine.containers.values()
    asked = container.options["HostConfig"].get("StorageOpt")
    assert asked == ({"size": "100m"} if storage == "xfs" else None)
    await host.close()


async def test_an_engine_that_refuses_sizes_is_asked_once(engine):
    engine.storage = "xfs"
    refusal = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
    engine.faults["create"].append(status(500, refusal))
    more = {"slots": 1, "read_only_root": False, "root_disk_mb": 100}
    provider = DockerProvider(config(engine, **more))
    assert not (await provider.prepare()).disk_limit
    assert engine.calls.count("create") == 2
    engine.faults["create"].append(status(500, refusal))
    with pytest.raises(CapabilityError, match="disk cannot be limited"):
        await DockerProvider(config(engine, **more, require_limits=("disk",))).prepare()


# --- An engine that does not do what it is asked -----------------------------------------------------


async def test_a_create_that_fails_for_a_moment_is_tried_again(engine):
    provider = await prepared(engine)
    engine.faults["create"] += [status(500, "no space left on device"), status(503, "busy")]
    host = await provider.launch("h1")
    assert engine.calls.count("create") == 3
    assert len(engine.containers) == 1
    await host.close()


@pytest.mark.parametrize("call", ["create", "attach", "start"])
async def test_a_call_that_never_works_is_a_host_that_did_not_start_in_the_engines_words(
    engine, call
):
    provider = await prepared(engine, launch_timeout_s=0.5)
    engine.faults[call] += [status(500, "write /var/lib/docker: no space left on device")] * 1000
    with pytest.raises(HostStartError, match=r"host h1 .*container .*no space left on device"):
        await provider.launch("h1")
    assert engine.calls.count(call) > 1
    assert not engine.containers


async def test_a_refusal_that_time_does_not_mend_is_not_tried_again(engine):
    provider = await prepared(engine)
    engine.faults["create"] += [status(404, "No such image: sha256:1")] * 2
    with pytest.raises(HostStartError, match="No such image: sha256:1"):
        await provider.launch("h1")
    assert engine.calls.count("create") == 1


async def test_a_main_process_that_ends_at_once_tells_why(engine):
    provider = await prepared(engine)

    def crash(container):
        container.main.say(b"Python 3.6 is too old", kind=2)
        container.end(1)

    engine.on_start = crash
    with pytest.raises(HostStartError, match=r"ended with exit code 1 Python 3\.6 is too old"):
        await provider.launch("h1")
    assert not engine.containers


async def test_a_main_process_that_says_nothing_is_given_up(engine):
    provider = await prepared(engine, launch_timeout_s=0.5)

    def fall_silent(container):
        container.main.mute = True

    engine.on_start = fall_silent
    with pytest.raises(HostStartError, match="no answer"):
        await provider.launch("h1")
    assert not engine.containers


async def test_what_is_no_stream_of_a_container_is_refused(engine):
    provider = await prepared(engine)
    engine.on_start = lambda container: container.main.transport.write(b"\x07" * 100)
    with pytest.raises(HostStartError, match="no chunk begins with"):
        await provider.launch("h1")
    assert not engine.containers


async def test_a_launch_cancelled_at_any_moment_leaves_nothing(engine):
    provider = await prepared(engine)
    finished = 0
    for turns in range(0, 400, 7):  # of the event loop
        launch = asyncio.create_task(provider.launch("h1"))
        for _ in range(turns):
            await asyncio.sleep(0)
        finished += launch.done()
        launch.cancel()
        await asyncio.wait({launch})
        if not launch.cancelled():
            await launch.result().close()
        assert not engine.containers
    assert finished, "no launch got to its end, so not every moment was tried"


async def test_a_launch_cancelled_while_the_engine_creates_removes_what_comes_of_it(engine):
    provider = await prepared(engine)
    answers = asyncio.Event()
    engine.faults["create"].append(after(answers))
    launch = asyncio.create_task(provider.launch("h1"))
    while "create" not in engine.calls:
        await asyncio.sleep(0.001)
    launch.cancel()
    await asyncio.sleep(0.01)
    launch.cancel()  # a second Ctrl-C
    answers.set()
    with pytest.raises(asyncio.CancelledError):
        await launch
    assert "remove" in engine.calls
    assert not engine.containers


async def test_an_engine_that_stands_still_keeps_nobody_who_wants_to_leave(engine):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    goes_on = asyncio.Event()
    for call in ("create", "remove", "version"):
        engine.faults[call] += [after(goes_on)] * 20
    launch = asyncio.create_task(provider.launch("h2"))
    while "create" not in engine.calls:
        await asyncio.sleep(0.001)
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    with pytest.raises(EngineError, match=r"did not answer.*the container ends by itself"):
        await host.close()
    assert not goes_on.is_set()
    goes_on.set()


async def test_an_engine_that_is_slow_but_answers_is_waited_for(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "_LOOK_S", 0.01)
    provider = await prepared(engine)
    host = await provider.launch("h1")
    removes = asyncio.Event()
    engine.faults["remove"].append(after(removes))
    engine.calls.clear()
    closing = asyncio.create_task(host.close())
    while engine.calls.count("version") < 3:
        await asyncio.sleep(0.001)
    assert not closing.done()
    removes.set()
    await closing
    assert not engine.containers


async def test_few_containers_start_at_the_same_time(engine):
    provider = await prepared(engine, max_hosts=20)
    answers = asyncio.Event()
    engine.faults["start"] += [after(answers)] * 20
    launches = [asyncio.create_task(provider.launch(f"h{n}")) for n in range(20)]
    while engine.calls.count("start") < 4:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert engine.calls.count("start") == 4
    answers.set()
    for host in await asyncio.gather(*launches):
        await host.close()
    assert not engine.containers


# --- A container that ends ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_code", "out_of_memory", "reason"),
    [
        (137, False, r"with exit code 137 \(killed\)"),
        (137, True, r"after it had run out of memory with exit code 137"),
        (0, False, "with exit code 0"),
    ],
)
async def test_a_container_that_ends_tells_those_who_wait_why(
    engine, exit_code, out_of_memory, reason
):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    host.on_lost(lost.set_result)
    (container,) = engine.containers.values()
    container.main.mute = True
    ping = asyncio.create_task(host.ping())
    await asyncio.sleep(0)
    container.end(exit_code, out_of_memory=out_of_memory)
    with pytest.raises(HostLostError, match=reason):
        await ping
    assert container.name in await lost
    await host.close()
    assert not engine.containers


async def test_a_server_that_crashes_is_lost_with_what_it_complained_of(engine):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    host.on_lost(lost.set_result)
    (container,) = engine.containers.values()
    container.main.say(frames.encode(frames.CLOSING, header=b'{"reason": ""}'))
    container.main.say(b"Traceback: it was my fault", kind=2)
    container.end(1)
    assert "exit code 1 Traceback: it was my fault" in await lost
    await host.close()


async def test_a_container_that_cannot_be_removed_is_an_error_of_close(engine):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    engine.faults["remove"].append(status(500, "device busy"))
    with pytest.raises(EngineError, match="device busy"):
        await host.close()


async def test_a_removal_that_somebody_else_is_at_is_waited_for(engine):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    engine.faults["remove"] += [status(409, "removal is already in progress")] * 3
    await host.close()
    assert not engine.containers


# --- What `prepare` finds ---------------------------------------------------------------------------


async def test_no_engine_at_all_is_named_with_its_address(tmp_path):
    provider = DockerProvider(DockerConfig(docker_host=f"unix://{tmp_path}/none.sock"))
    with pytest.raises(BackendUnavailableError, match=r"none\.sock .*is it running.*docker_host"):
        await provider.prepare()


async def test_a_call_that_hangs_ends_at_its_deadline(engine):
    engine.faults["info"].append(after(asyncio.Event()))
    async with Engine(engine.url, call_s=0.05) as client:
        with pytest.raises(EngineError, match=r"did not describe itself within 0\.05 s"):
            await client.info()


async def test_a_missing_image_is_named_with_the_way_out(engine):
    provider = DockerProvider(config(engine, image="nobody/nothing:1"))
    with pytest.raises(BackendUnavailableError, match=r"no image 'nobody/nothing:1'.*docker pull"):
        await provider.prepare()


async def test_a_pull_that_fails_is_told_in_the_registrys_words(engine):
    provider = DockerProvider(config(engine, image="nobody/nothing:1", pull="missing"))
    with pytest.raises(BackendUnavailableError, match="manifest for nobody/nothing:1 not found"):
        await provider.prepare()


async def test_an_image_without_python_is_named_with_the_way_out(engine):
    def crash(container):
        container.main.say(b"[FATAL tini (7)] exec python3 failed: No such file", kind=2)
        container.end(127)

    engine.on_start = crash
    provider = DockerProvider(config(engine, python="image"))
    with pytest.raises(
        BackendUnavailableError,
        match=r"image tools:1 has no python3.*python: bring.*install -y python3",
    ):
        await provider.prepare()
    assert not engine.containers


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (b"Python 3.5 is too old: the sandbox server needs 3.8 or newer", 1),
        (b"ModuleNotFoundError: No module named 'select'", 1),
        (b"python3: error while loading shared libraries: libpython3.so", 127),
    ],
)
async def test_a_python_that_cannot_be_used_is_told_with_its_own_words(engine, words, exit_code):
    def crash(container):
        container.main.say(words, kind=2)
        container.end(exit_code)

    engine.on_start = crash
    message = f"no usable python3.*{words.decode()}.*python: bring"
    with pytest.raises(BackendUnavailableError, match=message):
        await DockerProvider(config(engine, python="image")).prepare()


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"Architecture": "z80"}, r"is for z80 processors and this machine's Python for"),
        ({"Config": {"OnBuild": ["RUN make"]}}, r"ONBUILD.*set `dockerfile`"),
    ],
)
async def test_an_image_that_no_python_can_be_brought_to_is_refused_with_the_way_out(
    engine, described, message
):
    engine.images["tools:1"] = {"Id": "sha256:1", **described}
    provider = DockerProvider(config(engine, python="bring"))
    with pytest.raises(BackendUnavailableError, match=message):
        await provider.prepare()
    assert "create" not in engine.calls


async def test_an_image_with_volumes_is_refused_where_trajectories_would_share_them(engine):
    engine.images["tools:1"] = {"Id": "sha256:1", "Config": {"Volumes": {"/data": {}}}}
    with pytest.raises(BackendUnavailableError, match=r"declares volumes \(/data\)"):
        await DockerProvider(config(engine)).prepare()
    fresh = DockerProvider(config(engine, slots=1, read_only_root=False))
    await fresh.prepare()


async def test_limits_that_are_asked_for_and_not_there_are_refused(engine):
    with pytest.raises(CapabilityError, match=r"require_limits: memory"):
        await DockerProvider(config(engine, require_limits=("memory", "disk"))).prepare()
    assert not engine.containers
    alone = DockerProvider(config(engine, slots=1, require_limits=("memory", "disk")))
    assert (await alone.prepare()).isolation == "container"


# --- Sweeps -----------------------------------------------------------------------------------------


async def test_a_sweep_removes_what_is_nobodys_and_nothing_of_live_runs(engine):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    left = await provider.launch("h2")
    container = engine.containers[provider.container_names["h2"]]
    container.options["Labels"]["agentenv.expires"] = "1"
    container.options["Labels"]["agentenv.run"] = "old"
    other = DockerProvider(config(engine))
    (found,) = await other.sweep(remove=False)
    assert (found.kind, found.name, found.removed) == ("container", container.name, False)
    assert "run old" in found.owner
    assert len(engine.containers) == 2
    (removed,) = await other.sweep()
    assert removed.removed
    assert list(engine.containers) == [provider.container_names["h1"]]
    await left.close()
    await host.ping()
    await host.close()


async def test_a_sweep_says_what_it_could_not_remove(engine):
    provider = await prepared(engine)
    host = await provider.launch("h1")
    engine.containers[provider.container_names["h1"]].options["Labels"]["agentenv.expires"] = "1"
    engine.faults["remove"].append(status(500, "device busy"))
    (found,) = await provider.sweep()
    assert not found.removed
    await host.close()
