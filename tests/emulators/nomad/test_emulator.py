"""The emulated cluster as python-nomad sees it, and as its documentation says it answers.

With `--nomad-address` a real one is asked the same.
"""
# mypy: disable-error-code="no-untyped-call"

import asyncio
import secrets

import aiohttp
import nomad
import pytest
from nomad.api import exceptions

from tests.emulators.nomad.faults import RouteFault
from tests.emulators.nomad.live import OPTION, nomad_address
from tests.emulators.nomad.model import Node
from tests.emulators.nomad.server import running_nomad

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),
]
SECOND_NS = 10**9
WITHIN_S = 60.0


@pytest.fixture
async def address(request):
    async with nomad_address(request.config) as found:
        yield found


@pytest.fixture
async def emulated(request):
    if request.config.getoption(OPTION):
        pytest.skip("needs the emulator's switches")
    async with running_nomad(nodes=2) as running:
        yield running


def client(address, **options):
    return nomad.Nomad(address=address, **options)


def job(name, *, command="sleep", args=("600",), count=1, driver="raw_exec", **group):
    return {
        "ID": name,
        "Name": name,
        "Type": "service",
        "Datacenters": ["*"],
        "Update": {"MaxParallel": 0},
        "TaskGroups": [
            {
                "Name": "sandbox",
                "Count": count,
                "Networks": [{"DynamicPorts": [{"Label": "sandboxd"}]}],
                "Scaling": {"Enabled": False, "Min": 0, "Max": 5},
                "Tasks": [
                    {
                        "Name": "sandboxd",
                        "Driver": driver,
                        "Config": {"command": command, "args": list(args), "image": "no-such"},
                        "Resources": {"CPU": 50, "MemoryMB": 32},
                    }
                ],
                **group,
            }
        ],
    }


async def call(function, *arguments, **options):
    return await asyncio.to_thread(function, *arguments, **options)


async def until(look):
    """What `look` gives as soon as that is something."""
    async with asyncio.timeout(WITHIN_S):
        while not (found := await look()):
            await asyncio.sleep(0.05)
        return found


async def allocations(api, name, status):
    async def look():
        listing = await call(api.job.get_allocations, name)
        return [each for each in listing if each["ClientStatus"] == status]

    return await until(look)


async def answer(method, url, **options):
    async with aiohttp.ClientSession() as session, session.request(method, url, **options) as got:
        return got.status, await got.text(), got.headers


# --- what a real cluster does too ------------------------------------------------------------------


async def test_a_job_is_registered_runs_is_scaled_and_purged(address):
    api, name = client(address), f"test-{secrets.token_hex(4)}"
    registered = await call(api.job.register_job, name, {"Job": job(name, count=2)})
    assert registered["EvalID"]
    running = await until_count(api, name, 2)
    assert {each["Name"] for each in running} == {f"{name}.sandbox[0]", f"{name}.sandbox[1]"}
    found = await call(api.job.get_job, name)
    assert (found["ID"], found["TaskGroups"][0]["Count"], found["Stop"]) == (name, 2, False)
    assert (await call(api.jobs.get_jobs, prefix=name))[0]["ID"] == name
    alloc = await call(api.allocation.get_allocation, running[0]["ID"])
    (port,) = alloc["AllocatedResources"]["Shared"]["Ports"]
    assert port["Label"] == "sandboxd"
    assert port["Value"] > 0
    body = {"Count": 1, "Target": {"Group": "sandbox"}}
    status, _, _ = await answer("POST", f"{address}/v1/job/{name}/scale", json=body)
    assert status == 200
    gone = await allocations(api, name, "complete")
    assert [each["Name"] for each in gone] == [f"{name}.sandbox[1]"]
    await call(api.job.deregister_job, name, purge=True)
    with pytest.raises(exceptions.URLNotFoundNomadException, match="job not found"):
        await call(api.job.get_job, name)


async def until_count(api, name, count):
    async def look():
        listing = await call(api.job.get_allocations, name)
        running = [each for each in listing if each["ClientStatus"] == "running"]
        return running if len(running) == count else None

    return await until(look)


async def test_a_stopped_allocation_is_replaced_in_its_place(address):
    api, name = client(address), f"test-{secrets.token_hex(4)}"
    await call(api.job.register_job, name, {"Job": job(name, count=2)})
    before = {each["Name"]: each["ID"] for each in await until_count(api, name, 2)}
    await call(api.allocation.stop_allocation, before[f"{name}.sandbox[0]"])
    await allocations(api, name, "complete")
    after = {each["Name"]: each["ID"] for each in await until_count(api, name, 2)}
    assert after[f"{name}.sandbox[0]"] != before[f"{name}.sandbox[0]"]
    assert after[f"{name}.sandbox[1]"] == before[f"{name}.sandbox[1]"]
    await call(api.job.deregister_job, name, purge=True)


async def test_errors_are_plain_text(address):
    unknown = f"{address}/v1/job/no-such-job"
    assert (await answer("GET", unknown))[:2] == (404, "job not found")
    assert (await answer("GET", f"{unknown}/allocations"))[:2] == (200, "[]")
    assert (await answer("GET", f"{unknown}/scale"))[:2] == (404, "job not found")
    status, text, _ = await answer(
        "POST", f"{unknown}/scale", json={"Count": 1, "Target": {"Group": "sandbox"}}
    )
    assert (status, text) == (404, 'job "no-such-job" not found')
    assert (await answer("POST", f"{address}/v1/jobs", json={}))[:2] == (
        400,
        "Job must be specified",
    )
    assert (await answer("DELETE", unknown))[0] == 200
    assert (await answer("DELETE", f"{unknown}?purge=maybe"))[0] == 500
    assert (await answer("GET", f"{address}/v1/no/such/route"))[0] == 404
    assert (await answer("GET", f"{address}/v1/jobs?index=x"))[:2] == (400, "Invalid index")
    assert (await answer("GET", f"{address}/v1/jobs?index=1&wait=x"))[:2] == (
        400,
        "Invalid wait time",
    )


async def test_a_job_that_exists_is_not_registered_over_it_by_mistake(address):
    api, name = client(address), f"test-{secrets.token_hex(4)}"
    await call(api.job.register_job, name, {"Job": job(name, count=0)})
    body = {"Job": job(name, count=0), "EnforceIndex": True, "JobModifyIndex": 0}
    status, text, _ = await answer("POST", f"{address}/v1/jobs", json=body)
    assert (status, "Enforcing job modify index 0: job already exists" in text) == (500, True)
    await call(api.job.deregister_job, name, purge=True)


async def test_a_blocking_query_returns_when_something_changes(address):
    api, name = client(address), f"test-{secrets.token_hex(4)}"
    await call(api.job.register_job, name, {"Job": job(name, count=0)})
    url = f"{address}/v1/job/{name}/allocations"
    _, _, headers = await answer("GET", url)
    index = int(headers["X-Nomad-Index"])
    asked = asyncio.create_task(answer("GET", f"{url}?index={index}&wait=60s"))
    body = {"Count": 1, "Target": {"Group": "sandbox"}}
    await answer("POST", f"{address}/v1/job/{name}/scale", json=body)
    async with asyncio.timeout(WITHIN_S):
        _, text, headers = await asked
    assert int(headers["X-Nomad-Index"]) > index
    assert name in text
    await call(api.job.deregister_job, name, purge=True)


async def test_a_scaling_event_without_a_count_is_kept_and_changes_nothing(address):
    api, name = client(address), f"test-{secrets.token_hex(4)}"
    await call(api.job.register_job, name, {"Job": job(name, count=0)})
    body = {"Target": {"Group": "sandbox"}, "Message": "mine", "Meta": {"who": "me"}}
    url = f"{address}/v1/job/{name}/scale"
    assert (await answer("POST", url, json=body))[0] == 200
    group = (await call(api.job.request, name, "scale", method="get")).json()["TaskGroups"][
        "sandbox"
    ]
    assert (group["Desired"], group["Events"][0]["Meta"]) == (0, {"who": "me"})
    await call(api.job.deregister_job, name, purge=True)


async def test_what_cannot_be_placed_says_what_is_missing(address):
    name = f"test-{secrets.token_hex(4)}"
    impossible = job(name)
    impossible["TaskGroups"][0]["Tasks"][0]["Resources"]["MemoryMB"] = 1 << 30
    _, text, _ = await answer("POST", f"{address}/v1/job/{name}/plan", json={"Job": impossible})
    assert '"DimensionExhausted": {"memory"' in text.replace('":{', '": {')


async def test_a_task_that_ends_is_restarted_and_then_failed(address):
    api, name = client(address), f"test-{secrets.token_hex(4)}"
    policy = {"Attempts": 1, "Interval": 60 * SECOND_NS, "Delay": 5 * SECOND_NS, "Mode": "fail"}
    never = {
        "Attempts": 0,
        "Interval": 0,
        "Delay": 5 * SECOND_NS,
        "DelayFunction": "constant",
        "Unlimited": False,
    }
    body = job(name, command="false", args=(), RestartPolicy=policy, ReschedulePolicy=never)
    await call(api.job.register_job, name, {"Job": body})
    (failed,) = await allocations(api, name, "failed")
    state = failed["TaskStates"]["sandboxd"]
    kinds = [event["Type"] for event in state["Events"]]
    assert (state["State"], state["Failed"], state["Restarts"]) == ("dead", True, 1)
    assert kinds.count("Terminated") == 2
    assert (kinds[0], kinds[-1]) == ("Received", "Not Restarting")
    await call(api.job.deregister_job, name, purge=True)


async def test_the_cluster_itself_can_be_asked(address):
    api = client(address)
    assert ":" in await call(api.status.leader.get_leader)
    nodes = await call(api.nodes.get_nodes)
    assert {each["Status"] for each in nodes} <= {"ready", "down", "initializing"}
    assert "config" in await call(api.agent.get_agent)


# --- what is switched on ---------------------------------------------------------------------------


async def test_a_token_is_needed_where_there_is_one():
    async with running_nomad(token="right") as running:
        with pytest.raises(exceptions.URLNotAuthorizedNomadException):
            await call(client(running.url, token="wrong").jobs.get_jobs)
        assert await call(client(running.url, token="right").jobs.get_jobs) == []
        assert (await answer("GET", f"{running.url}/v1/jobs"))[:2] == (403, "Permission denied")


async def test_a_backing_off_task_is_pending_with_restarts(emulated):
    api = client(emulated.url)
    policy = {"Attempts": 5, "Interval": 1800 * SECOND_NS, "Delay": 3600 * SECOND_NS}
    body = job("backing-off", command="false", args=(), RestartPolicy=policy)
    await call(api.job.register_job, "backing-off", {"Job": body})

    async def look():
        (each,) = await call(api.job.get_allocations, "backing-off")
        state = (each["TaskStates"] or {}).get("sandboxd", {"Restarts": 0})
        return state["Restarts"] and (each["ClientStatus"], state["Events"][-1]["Type"])

    assert await until(look) == ("pending", "Restarting")


async def test_an_image_that_is_missing_is_a_failure_of_the_driver(emulated):
    api = client(emulated.url)
    await call(api.job.register_job, "imageless", {"Job": job("imageless", driver="docker")})

    async def look():
        (each,) = await call(api.job.get_allocations, "imageless")
        events = (each["TaskStates"] or {}).get("sandboxd", {"Events": []})["Events"]
        return [event for event in events if event["Type"] == "Driver Failure"]

    assert "manifest unknown" in (await until(look))[0]["DisplayMessage"]


async def test_allocations_of_a_lost_node_are_lost_and_replaced_while_its_processes_go_on(emulated):
    api = client(emulated.url)
    await call(api.job.register_job, "lossy", {"Job": job("lossy", count=1)})
    (before,) = await until_count(api, "lossy", 1)
    (pid,) = emulated.cluster.pids
    (node,) = [each for each in emulated.cluster.state.nodes if each.name == before["NodeName"]]
    emulated.cluster.lose_node(node)
    (lost,) = await allocations(api, "lossy", "lost")
    assert lost["ID"] == before["ID"]
    (after,) = await until_count(api, "lossy", 1)
    assert after["NodeName"] != before["NodeName"]
    assert pid in emulated.cluster.pids
    emulated.cluster.return_node(node)

    async def ended():
        return pid not in emulated.cluster.pids

    await until(ended)


async def test_faults_are_what_they_say(emulated):
    api, faults = client(emulated.url), emulated.faults
    faults.no_leader = True
    with pytest.raises(exceptions.BaseNomadException):
        await call(api.jobs.get_jobs)
    assert (await answer("GET", f"{emulated.url}/v1/jobs"))[:2] == (500, "No cluster leader")
    faults.no_leader = False
    faults.routes.append(RouteFault("GET /v1/nodes", 200, "", truncated=True))
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer("GET", f"{emulated.url}/v1/nodes")
    faults.scaling_blocked = True
    await call(api.job.register_job, "blocked", {"Job": job("blocked", count=0)})
    body = {"Count": 1, "Target": {"Group": "sandbox"}}
    status, text, _ = await answer("POST", f"{emulated.url}/v1/job/blocked/scale", json=body)
    assert (status, text) == (400, "job scaling blocked due to active deployment")


async def test_a_full_cluster_places_what_waits_as_soon_as_there_is_room():
    small = Node("small", "127.0.1.1", memory_mb=40)
    async with running_nomad(nodes=[small]) as running:
        api = client(running.url)
        await call(api.job.register_job, "first", {"Job": job("first")})
        await until_count(api, "first", 1)
        await call(api.job.register_job, "second", {"Job": job("second")})

        async def blocked():
            listing = await call(api.job.get_evaluations, "second")
            return [each for each in listing if each["FailedTGAllocs"]]

        (evaluation,) = await until(blocked)
        assert evaluation["FailedTGAllocs"]["sandbox"]["DimensionExhausted"] == {"memory": 1}
        await call(api.job.deregister_job, "first")
        await until_count(api, "second", 1)
