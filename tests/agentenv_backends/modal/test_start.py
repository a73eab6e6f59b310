"""What a sandbox is created with, and what is refused at the start, within seconds and in a sentence with a way out."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.config import ModalConfig
from agentenv_backends.errors import BackendUnavailableError, CapabilityError
from tests.agentenv_backends.modal.conftest import Ground, small
from tests.emulators.modal.state import MISSING_IMAGE, WITHOUT_PYTHON

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.emulators.modal.running import EmulatedModal

    Start = Callable[..., Awaitable[Ground]]

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


async def test_a_sandbox_is_created_as_the_config_says(start: Start, server: EmulatedModal):
    server.tell("secret", name="keys", env={"NAMED": "by name"})
    ground = await start(
        cpus=2,
        max_cpus=4,
        sandbox_memory_mb=1024,
        max_sandbox_memory_mb=2048,
        region=("eu", "us-east"),
        cloud="aws",
        secrets=("keys",),
        env_vars={"VALUE": "by value"},
        idle_timeout_s=90,
        max_lifetime_s=600,
        allow_network=True,
    )
    slot = await ground.pool.acquire("t")
    (made,) = (each for each in server.sandboxes() if each["name"] == ground.name_of(slot))
    assert (made["cpu"], made["memory"]) == ([2000, 4000], [1024, 2048])
    assert (made["regions"], made["cloud"]) == (["eu", "us-east"], "aws")
    assert (made["timeout"], made["idle_timeout"]) == (600, 90)
    assert made["network"] == 1, "open"
    assert set(made["tags"]) == {f"agentenv-{name}" for name in ("run", "boot", "owner", "expires")}
    assert abs(int(made["tags"]["agentenv-expires"]) - time.time() - 600) < 60
    assert all(len(value) <= 63 for value in made["tags"].values())
    assert await ground.say(slot, "echo $NAMED, $VALUE") == "by name, by value\n"


async def test_a_gpu_takes_sandboxes_of_the_older_kind(start: Start, server: EmulatedModal):
    ground = await start(gpu="H100:2")
    slot = await ground.pool.acquire("t")
    (made,) = server.sandboxes()
    assert (made["gpu"], made["gpus"]) == ("H100", 2)
    assert await ground.say(slot, "echo hi") == "hi\n"


async def test_alone_in_a_sandbox_a_trajectory_has_the_usual_workspace(start: Start):
    ground = await start(slots=1)
    slot = await ground.pool.acquire("t")
    assert slot.workspace_dir == "/workspace"
    assert await ground.say(slot, "pwd; echo x > /tmp/x; echo $HOME") == "/workspace\n/workspace\n"
    assert ground.pool.capabilities.isolation == "container"


async def test_root_of_a_sandbox_gets_a_fresh_one_each_time(start: Start):
    ground = await start(slots=1, run_as_root=True)
    first = await ground.pool.acquire("a")
    assert await ground.say(first, "id -u; touch /root/trace") == "0\n"
    name = ground.name_of(first)
    await ground.pool.release(first)
    second = await ground.pool.acquire("b")
    assert ground.name_of(second) != name
    assert await ground.say(second, "ls /root") == ""


async def test_values_of_variables_are_in_no_log_and_no_message(
    start: Start, server: EmulatedModal, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    await start(env_vars={"KEY": "hunter2"})
    server.fault("SandboxCreateV2", "INVALID_ARGUMENT")
    with pytest.raises(BackendUnavailableError) as refused:
        await start(env_vars={"KEY": "hunter2"})
    assert "hunter2" not in caplog.text + str(refused.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"image": f"{MISSING_IMAGE}:1"}, (MISSING_IMAGE, "(image)")),
        ({"image": "im-0000000000000000000000"}, ("im-000", "(image)")),
        ({"image": f"{WITHOUT_PYTHON}:1"}, (WITHOUT_PYTHON, "needs python3", "add_python")),
        ({"gpu": "X1000"}, ("X1000", "look at", "gpu")),
        ({"cpus": 100}, ("100000 milli CPU", "cpus")),
        ({"sandbox_memory_mb": 1 << 20}, ("MiB", "sandbox_memory_mb")),
        ({"secrets": ("nobody-s",)}, ("nobody-s", "(secrets)")),
        ({"require_limits": ("disk",)}, ("require_limits: disk",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_what_cannot_be_is_refused_at_the_start(
    start: Start, settings: dict[str, Any], told: tuple[str, ...]
):
    async with asyncio.timeout(60):
        with pytest.raises((BackendUnavailableError, CapabilityError)) as refused:
            await start(**settings)
    assert not [words for words in told if words not in str(refused.value)], refused.value


async def test_a_wrong_token_names_the_variables_to_set(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-wrong")
    with pytest.raises(BackendUnavailableError, match=r"MODAL_TOKEN_SECRET.*modal token new"):
        await start()


async def test_without_a_token_the_way_to_one_is_told(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name)
    with pytest.raises(BackendUnavailableError, match="modal token new"):
        await start()


async def test_a_server_that_is_not_there_is_named_within_seconds(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:9")
    async with asyncio.timeout(30):  # by itself the client tries for a minute
        with pytest.raises(
            BackendUnavailableError,
            match=r"Modal at http://127\.0\.0\.1:9 \(MODAL_SERVER_URL\) cannot be reached",
        ):
            await start()


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("agentenv_backends.modal")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "modal", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'agentenv\[modal\]'"):
        ModalConfig().build()


async def test_several_kinds_of_sandboxes_are_one_backend(server: EmulatedModal):
    config = small(profiles={"big": {"sandbox_memory_mb": 8192, "slots": 1}})
    async with config.build() as backend:
        usual = await backend.acquire("a")
        big = await backend.acquire("b", profile="big")
        memory = {each["name"].split("-")[0]: each["memory"][0] for each in server.sandboxes()}
        assert memory == {"default": 2048, "big": 8192}
        assert (usual.workspace_dir, big.workspace_dir) == ("/data/0/workspace", "/workspace")
        with pytest.raises(CapabilityError, match=r"no profile 'huge'; there is: default, big"):
            await backend.acquire("c", profile="huge")
        await backend.release(usual)
        await backend.release(big)
    assert server.sandboxes() == []
