"""The executor as a service: its routes over real sockets, its sandboxes in memory."""

import asyncio
import base64
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentenv_backends.config import LocalConfig
from agentenv_backends.errors import AcquireTimeoutError, HostLostError
from agentenv_tools import ToolConfigError, ToolExecutor, ToolExecutorConfig, build_registry
from agentenv_tools.serving import (
    ExecutorServer,
    ExecutorServerLimits,
    ServeSettings,
    serving,
)
from agentenv_tools.serving.answers import kind_of
from agentenv_tools.testing import FakeRun, fake_executor
from tests.agentenv_tools.serving.service_client import TOKEN, Client, bearer
from tests.waiting import WITHIN_S


@asynccontextmanager
async def executor_service(
    limits: ExecutorServerLimits | None = None,
    config: ToolExecutorConfig | None = None,
    slots: int = 4,
):
    async with fake_executor(slots=slots, config=config) as run:
        settings = ServeSettings(token=TOKEN, stop_grace_s=0.2)
        server = ExecutorServer(run.executor, run.pool, settings, limits)
        async with serving(server) as url:
            yield Client(url, TOKEN), run


def sh(command: str, trajectory: str = "t", **more: Any) -> dict[str, Any]:
    call = {"name": "terminal", "arguments": {"command": command}, "uniq_id": "u"}
    return {"trajectory_id": trajectory, "tool": call, **more}


async def until(condition: Any) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_trajectory_keeps_its_workspace_from_call_to_call_until_it_is_released():
    async with executor_service() as (client, run):
        assert (await client.post("/execute", sh("echo mine > note")))[1]["success"]
        status, answer = await client.post("/execute", sh("cat note"))
        assert (status, answer["output"], answer["uniq_id"]) == (200, "mine\n", "u")
        assert run.pool.stats().acquired_slots == 1
        released = await client.post("/release", {"trajectory_id": "t", "reset_workspace": True})
        assert released == (200, {"success": True, "released": True})
        assert run.pool.stats().acquired_slots == 0
        assert not (await client.post("/execute", sh("cat note")))[1]["success"]


async def test_releasing_what_is_unknown_is_no_error():
    async with executor_service() as (client, _):
        assert (await client.post("/release", {"trajectory_id": "never"}))[1]["released"] is False


async def test_what_the_agent_does_wrong_is_a_result():
    async with executor_service() as (client, _):
        failing = (await client.post("/execute", sh("exit 3")))[1]
        unknown = (await client.post("/execute", {"trajectory_id": "t", "tool": {"name": "no"}}))[1]
        assert (failing["success"], failing["error"]) == (False, "Exit code: 3")
        assert unknown["error"].startswith("Unknown tool: no")


async def test_status_counts_calls_and_slots():
    async with executor_service() as (client, run):
        await client.post("/execute", sh("true"))
        await client.post("/execute", sh("exit 1"))
        _, status = await client.get("/status")
        assert (status["queue_size"], status["total_requests"], status["total_errors"]) == (0, 2, 1)
        pool = status["pool"]
        now = run.pool.stats()
        assert (pool["total_slots"], pool["acquired_slots"]) == (now.total_slots, 1)
        assert pool["slots_by_state"] == {"available": now.available_slots, "acquired": 1}
        assert pool["containers"] == 1
        assert pool["started"] is True


async def test_every_route_but_liveness_needs_the_token():
    async with executor_service() as (client, _):
        client._headers = {}
        for path in ("/", "/status"):
            assert (await client.get(path))[0] == 401
        for path in ("/execute", "/release", "/artifacts/read", "/artifacts/list"):
            assert (await client.post(path, {}))[0] == 401
            assert (await client.post(path, {}, headers=bearer("other")))[0] == 403
        assert (await client.get("/health"))[0] == 200


# ---- what the infrastructure does wrong ----


async def test_a_lost_sandbox_is_no_result_and_says_what_it_is():
    async with executor_service() as (client, run):
        await client.post("/execute", sh("true"))
        for host in list(run.provider.live.values()):
            host.lose()
        status, answer = await client.post("/execute", sh("true"))
        assert status == 503
        assert answer["error"]["kind"] in ("host_lost", "slot_lost")
        again, answer = await client.post("/execute", sh("true"))
        assert again == 503  # never a second, empty workspace
        await client.post("/release", {"trajectory_id": "t"})
        assert (await client.post("/execute", sh("true")))[0] == 200


async def test_a_slot_that_does_not_come_is_told_apart():
    config = ToolExecutorConfig(acquire_timeout_s=0.1)
    async with executor_service(config=config, slots=1) as (client, _):
        await client.post("/execute", sh("true", "a"))
        status, answer = await client.post("/execute", sh("true", "b"))
        assert (status, answer["error"]["kind"]) == (503, "acquire_timeout")


@pytest.mark.parametrize(
    ("error", "kind"), [(HostLostError, "host_lost"), (AcquireTimeoutError, "acquire_timeout")]
)
def test_kinds_are_named_after_the_errors(error: type[Exception], kind: str):
    assert kind_of(error("x")) == kind


async def test_a_call_that_was_released_under_way_is_told_apart():
    async with executor_service() as (client, run):
        call = asyncio.create_task(client.post("/execute", sh("sleep 60")))
        await until(lambda: run.executor.stats().in_flight)
        await client.post("/release", {"trajectory_id": "t"})
        status, answer = await call
        assert (status, answer["error"]["kind"]) == (409, "trajectory_released")


# ---- clients that go away ----


async def test_a_call_ends_with_its_caller():
    async with executor_service() as (client, run):
        call = asyncio.create_task(client.post("/execute", sh("sleep 60")))
        await until(lambda: run.executor.stats().in_flight)
        call.cancel()
        await asyncio.wait({call})
        await until(lambda: run.executor.stats().cancelled == 1)


async def test_a_call_sent_again_with_its_key_runs_once():
    async with executor_service() as (client, run):
        key = {"idempotency-key": "k1"}
        answers = [await client.post("/execute", sh("echo x"), headers=key) for _ in range(3)]
        assert {answer["output"] for _, answer in answers} == {"x\n"}
        assert run.executor.stats().total_requests == 1
        await client.post("/execute", sh("echo x"))
        assert run.executor.stats().total_requests == 2


async def test_a_key_means_nothing_any_more_once_its_trajectory_is_released():
    async with executor_service() as (client, run):
        key = {"idempotency-key": "k1"}
        await client.post("/execute", sh("echo x", "other"), headers=key)
        await client.post("/execute", sh("echo x"), headers=key)
        await client.post("/release", {"trajectory_id": "t"})
        await client.post("/execute", sh("echo x"), headers=key)
        assert run.executor.stats().total_requests == 3
        await client.post("/execute", sh("echo x", "other"), headers=key)
        assert run.executor.stats().total_requests == 3


@pytest.mark.parametrize("idle_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_silence_that_is_none_is_refused(idle_s: float):
    with pytest.raises(ToolConfigError, match="idle_s"):
        ExecutorServerLimits(idle_s=idle_s)


async def test_a_silent_clients_trajectory_is_released_and_never_begins_anew():
    limits = ExecutorServerLimits(idle_s=0.2)
    async with executor_service(limits) as (client, run):
        await client.post("/execute", sh("true"))
        await until(lambda: run.pool.stats().acquired_slots == 0)
        status, answer = await client.post("/execute", sh("true"))
        assert (status, answer["error"]["kind"]) == (410, "trajectory_expired")
        await client.post("/release", {"trajectory_id": "t"})
        assert (await client.post("/execute", sh("true")))[0] == 200


async def test_a_trajectory_in_the_middle_of_a_call_is_not_silent():
    limits = ExecutorServerLimits(idle_s=0.1)
    async with executor_service(limits) as (client, _):
        status, answer = await client.post("/execute", sh("sleep 0.5"))
        assert (status, answer["success"]) == (200, True)


async def test_trajectories_beyond_the_limit_are_refused():
    async with executor_service(ExecutorServerLimits(max_trajectories=1)) as (client, _):
        await client.post("/execute", sh("true", "a"))
        status, answer = await client.post("/execute", sh("true", "b"))
        assert (status, answer["error"]["kind"]) == (503, "too_many_trajectories")


# ---- artifacts ----


@pytest.mark.sandbox
async def test_artifacts_are_read_listed_and_archived_in_real_sandboxes():
    backend = LocalConfig(slots=1, memory_mb=128, disk_mb=16, tmp_mb=8).build()
    await backend.start()
    executor = ToolExecutor(backend, build_registry())
    try:
        async with serving(ExecutorServer(executor, backend)) as url:
            await check_artifacts(Client(url))
    finally:
        await executor.close()
        await backend.stop()


async def check_artifacts(client: Client) -> None:
    await client.post("/execute", sh("mkdir d; echo hello > note.txt; ln -s /etc link"))
    where = {"trajectory_id": "t", "path": "note.txt"}
    _, read = await client.post("/artifacts/read", {**where, "include_sha256": True})
    assert (read["content"], read["bytes"], read["mime"]) == ("hello\n", 6, "text/plain")
    assert (read["encoding"], read["truncated"], len(read["sha256"])) == ("text", False, 64)
    _, raw = await client.post("/artifacts/read", {**where, "encoding": "base64"})
    assert base64.b64decode(raw["content"]) == b"hello\n"
    _, cut = await client.post("/artifacts/read", {**where, "max_bytes": 2})
    assert (cut["content"], cut["truncated"], cut["file_size"]) == ("he", True, 6)
    _, listed = await client.post("/artifacts/list", {"trajectory_id": "t"})
    assert {entry["path"]: entry["is_dir"] for entry in listed["entries"]} == {
        "d": True,
        "link": False,
        "note.txt": False,
    }
    _, packed = await client.post("/artifacts/archive", {"trajectory_id": "t", "format": "tgz"})
    assert (packed["encoding"], packed["format"]) == ("base64", "tar.gz")
    assert len(base64.b64decode(packed["content"])) == packed["bytes"]
    for path, status in {
        "nope": 404,
        "../../etc/passwd": 403,
        "link/passwd": 403,
        "d": 400,
    }.items():
        found = await client.post("/artifacts/read", {"trajectory_id": "t", "path": path})
        assert found[0] == status, (path, found)
    too_large = {"trajectory_id": "t", "path": ".", "max_bytes": 10}
    assert (await client.post("/artifacts/archive", too_large))[0] == 413


async def test_an_artifact_that_is_not_there_is_not_found():
    async with executor_service() as (client, _):
        await client.post("/execute", sh("true"))
        status, answer = await client.post(
            "/artifacts/read", {"trajectory_id": "t", "path": "nope"}
        )
        assert (status, answer["error"]["kind"]) == (404, "not_found")


async def test_a_trajectory_without_a_slot_has_no_artifacts():
    async with executor_service() as (client, run):
        for route in ("read", "list", "archive"):
            body = {"trajectory_id": "none", "path": "."}
            status, answer = await client.post(f"/artifacts/{route}", body)
            assert (status, answer["error"]["kind"]) == (409, "no_active_slot")
        assert isinstance(run, FakeRun)
        assert run.pool.stats().acquired_slots == 0
