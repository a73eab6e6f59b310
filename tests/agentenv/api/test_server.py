import asyncio
import gzip
import json

import pytest

from agentenv.api.codec import (
    CONTENT_TYPE,
    decode_message,
    encode_message,
    pack,
    packed_group,
    unpack,
)
from agentenv.api.group import scored_group, wire_group
from agentenv.api.settings import ApiSettings, Scope
from agentenv.api.writing import KEYS
from agentenv.errors import ConfigError
from agentenv_tools.serving import ServeSettings
from tests.agentenv.api.groups import REGISTRATION, env_registration, make_group
from tests.agentenv.api.served import served

# ---- the protocol ----


async def test_a_server_nobody_registered_at_answers_as_the_protocol_says():
    async with served() as api:
        assert await api.get("/info") == {"batch_size": -1, "max_token_len": -1}
        assert await api.get("/wandb_info") == {"group": None, "project": None}
        status = await api.get("/status")
        assert (status["current_step"], status["queue_size"]) == (0, 0)
        batch = await api.get("/batch")
        assert (batch["status"], batch["batch"]) == ("error", [])
        example = await api.get("/latest_example")
        assert len(example) == 9
        assert not any(example.values())
        waiting = await api.post("/register-env", env_registration())
        assert waiting == {"status": "wait for trainer to start"}


async def test_environments_may_register_once_the_trainer_has_asked_for_a_batch():
    async with served() as api:
        answer = await api.post("/register", REGISTRATION | {"starting_step": 7})
        assert isinstance(answer["uuid"], int)
        assert (await api.post("/register-env", env_registration()))["status"] != "success"
        assert await api.get("/batch") == {"batch": None}
        answer = await api.post("/register-env", env_registration())
        assert answer | {"server_id": ""} == {
            "status": "success",
            "env_id": 0,
            "wandb_name": "env_0",
            "checkpoint_dir": "/checkpoints",
            "starting_step": 7,
            "checkpoint_interval": 5,
            "num_steps": 100,
            "server_id": "",
        }
        assert (await api.post("/register-env", env_registration()))["wandb_name"] == "env_1"
        other = await api.post("/register-env", env_registration(desired_name="other"))
        assert (other["env_id"], other["wandb_name"]) == (2, "other_0")
        assert await api.get("/info") == {"batch_size": 4, "max_token_len": 128}
        assert await api.get("/wandb_info") == {"group": "group", "project": "project"}


async def test_a_second_registration_of_a_trainer_changes_nothing():
    async with served() as api:
        first = await api.post("/register", REGISTRATION)
        second = await api.post("/register", REGISTRATION | {"batch_size": 99})
        assert first["uuid"] != second["uuid"]
        assert (first["took_effect"], second["took_effect"]) == (True, False)
        assert (await api.get("/info"))["batch_size"] == 4


async def test_groups_come_back_in_order_a_batch_for_each_call_and_a_step_for_each_batch():
    async with served() as api:
        await api.start_training(starting_step=3)
        groups = [make_group(seed=seed) for seed in range(5)]
        for group in groups[:3]:
            assert await api.post("/scored_data", group) == {"status": "received"}
        answer = await api.post("/scored_data_list", groups[3:])
        assert answer == {"status": "received", "groups_processed": 2}
        assert (await api.get("/latest_example"))["tokens"] == groups[4]["tokens"]
        for first in (0, 2):
            batch = await api.get("/batch")
            assert batch.keys() == {"batch"}
            expected = [dict.fromkeys(KEYS) | group for group in groups[first : first + 2]]
            assert batch["batch"] == expected
            assert (await api.get("/status"))["current_step"] == 4 + first // 2
        assert await api.get("/batch") == {"batch": None}
        assert (await api.get("/status"))["queue_size"] == 1


async def test_groups_that_came_before_the_trainer_are_kept():
    async with served() as api:
        await api.post("/scored_data_list", [make_group(), make_group(seed=1)])
        await api.post("/register", REGISTRATION)
        assert (await api.get("/info"))["batch_size"] == 4
        assert len((await api.get("/batch"))["batch"]) == 2


async def test_groups_of_another_size_wait_in_their_environments_buffer():
    async with served() as api:
        await api.start_training()
        env_id = await api.register_env(group_size=4)
        small = [make_group(rows=rows, env_id=env_id, seed=rows) for rows in (3, 3, 1)]
        assert await api.post("/scored_data", small[0]) == {"status": "buffered", "buffer_size": 3}
        answer = await api.post("/scored_data_list", small[1:])
        assert answer == {
            "status": "received",
            "groups_processed": 2,
            "buffered": 2,
            "last_buffer_size": 3,
        }
        status = await api.get("/status")
        assert (status["queue_size"], status["buffered"]) == (2, 1)
        too_large = make_group(rows=5, env_id=env_id)
        assert (await api.post("/scored_data", too_large))["status"] == "buffered"
        assert (await api.get("/status"))["unpackable"] == 2 + 1  # 3 and 1 make no pack of 3


async def test_an_environment_is_told_how_things_stand():
    async with served() as api:
        await api.start_training(batch_size=8)
        first = await api.register_env(weight=3.0, min_batch_allocation=0.25)
        second = await api.register_env(desired_name="b", group_size=4)
        await api.post("/scored_data_list", [make_group(env_id=first)] * 3)
        await api.post("/scored_data", make_group(rows=4, env_id=second))
        own = await api.get("/status-env", {"env_id": first})
        other = await api.get("/status-env", {"env_id": second})
        assert own | {"server_id": ""} == {
            "current_step": 0,
            "queue_size": (6 + 4) // 2,
            "unallocated_fraction": 0.75,
            "self_queue_size": 3,
            "max_group_size": 4,
            "env_weight": 0.75,
            "paused": False,
            "server_id": "",
        }
        assert other["queue_size"] == (4 + 8 - 2) // 4
        assert (await api.post("/disconnect-env", {"env_id": first})) == {"status": "success"}
        assert (await api.get("/status-env", {"env_id": second}))["env_weight"] == 1.0
        assert (await api.post("/disconnect-env", {"env_id": 9}))["status"] == "failure"


async def test_a_weight_that_makes_no_sense_breaks_nothing():
    async with served() as api:
        await api.start_training()
        env_id = await api.register_env(weight=-1.0)
        assert (await api.get("/status-env", {"env_id": env_id}))["env_weight"] == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"group_size": 0},
        {"group_size": 2**40},
        {"weight": float("nan")},
        {"weight": 1e300},
        {"min_batch_allocation": 1e300},
        {"max_token_length": 10**400},
        {"desired_name": None},
    ],
)
async def test_an_environment_whose_numbers_make_no_sense_is_refused(wrong: dict[str, object]):
    async with served() as api:
        await api.start_training()
        answer = await api.call("POST", "/register-env", env_registration(**wrong))
        assert answer.status == 422


async def test_an_unknown_environment_is_told_so():
    async with served() as api:
        answer = await api.call("GET", "/status-env", {"env_id": 3})
        assert (answer.status, answer.json["kind"]) == (404, "unknown_env")
        assert (await api.call("GET", "/status-env?env_id=3")).status == 422


async def test_reset_forgets_all_but_what_the_protocol_keeps():
    async with served() as api:
        await api.start_training()
        await api.register_env()
        await api.post("/scored_data", make_group())
        answer = await api.call("GET", "/reset_data")
        assert (answer.status, answer.body) == (200, b"Reset successful")
        assert await api.get("/info") == {"batch_size": -1, "max_token_len": 128}
        assert await api.get("/wandb_info") == {"group": None, "project": None}
        status = await api.get("/status")
        assert (status["queue_size"], status["current_step"], status["environments"]) == (0, 0, [])
        assert (await api.get("/latest_example"))["tokens"] == make_group()["tokens"]
        await api.start_training(batch_size=2)
        assert (await api.get("/info"))["batch_size"] == 2


async def test_after_a_reset_an_environment_learns_that_its_id_may_be_another_ones():
    async with served() as api:
        await api.start_training()
        env_id = await api.register_env()
        before = await api.get("/status-env", {"env_id": env_id})
        assert (await api.call("GET", "/reset_data")).status == 200
        await api.start_training()
        assert await api.register_env(desired_name="b") == env_id
        after = await api.get("/status-env", {"env_id": env_id})
        assert after["server_id"] != before["server_id"]


async def test_bodies_may_be_gzip_and_large_answers_are_where_the_caller_reads_it():
    async with served() as api:
        await api.start_training()
        body = json.dumps([make_group(2, 400, seed) for seed in range(2)]).encode()
        packed = gzip.compress(body[:50]) + gzip.compress(body[50:])
        answer = await api.call("POST", "/scored_data_list", packed, {"Content-Encoding": "gzip"})
        assert answer.status == 200
        answer = await api.call("GET", "/batch", headers={"Accept-Encoding": "gzip"})
        assert answer.headers["Content-Encoding"] == "gzip"
        assert len(json.loads(gzip.decompress(answer.body))["batch"]) == 2
        info = await api.call("GET", "/info", headers={"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in info.headers
        for broken in (b"nothing", gzip.compress(body)[:-20]):
            answer = await api.call("POST", "/scored_data", broken, {"Content-Encoding": "gzip"})
            assert answer.status == 400
            assert answer.body.startswith(b"Invalid gzip payload")


async def test_a_batch_larger_than_a_packet_is_streamed_whole():
    async with served() as api:
        await api.start_training()
        groups = [make_group(2, 20_000, seed) for seed in range(2)]
        await api.post("/scored_data_list", groups)
        answer = await api.call("GET", "/batch", headers={"Accept-Encoding": "identity"})
        assert [group["tokens"] for group in answer.json["batch"]] == [g["tokens"] for g in groups]
        await api.post("/scored_data_list", groups)
        answer = await api.call("GET", "/batch", headers={"Accept-Encoding": "gzip"})
        back = json.loads(gzip.decompress(answer.body))["batch"]
        assert back[1]["inference_logprobs"] == groups[1]["inference_logprobs"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/batch", 405),
        ("HEAD", "/info", 405),
        ("DELETE", "/status", 405),
        ("GET", "/scored_data", 405),
    ],
)
async def test_what_there_is_not_is_refused(method: str, path: str, status: int):
    async with served() as api:
        assert (await api.call(method, path)).status == status


async def test_bodies_that_are_wrong_are_refused_and_counted_and_nothing_is_kept():
    async with served() as api:
        bodies = [
            b"",
            b"{",
            b"[]",
            b'{"tokens": [[1]]}',
            json.dumps(make_group(scores=[1])).encode(),
        ]
        for body in bodies:
            answer = await api.call("POST", "/scored_data", body)
            assert answer.status == 422
            assert answer.json["detail"][0]["loc"][0] == "body"
        answer = await api.call(
            "POST", "/scored_data", make_group(), {"Content-Type": "text/plain"}
        )
        assert answer.status == 422
        both = [make_group(), make_group(scores=[1])]
        assert (await api.call("POST", "/scored_data_list", both)).status == 422
        for path in ("/register", "/register-env", "/disconnect-env", "/batch/acknowledge"):
            assert (await api.call("POST", path, {"batch_size": None})).status == 422
        status = await api.get("/status")
        assert status["queue_size"] == 0
        assert status["counts"]["refused_invalid"] == 5


# ---- what ours adds ----


async def test_a_consumer_gets_its_batch_again_until_it_acknowledges_it():
    async with served() as api:
        await api.start_training()
        await api.post("/scored_data_list", [make_group(seed=seed) for seed in range(4)])
        first = await api.get("/batch?consumer=a")
        assert (first["batch_id"], first["step"]) == (1, 0)
        assert await api.get("/batch?consumer=a") == first
        second = await api.get("/batch?consumer=b")
        assert (second["batch_id"], second["step"]) == (2, 1)
        assert (await api.get("/status"))["current_step"] == 2
        done = {"batch_id": 1, "consumer": "a"}
        for _ in range(2):
            answer = await api.post("/batch/acknowledge", done)
            assert answer == {"status": "success", "batch_id": 1}
        assert await api.get("/batch?consumer=a") == {"batch": None}
        refused = await api.call("POST", "/batch/acknowledge", {"batch_id": 2, "consumer": "a"})
        assert refused.status == 409
        unknown = await api.call("POST", "/batch/acknowledge", {"batch_id": 7, "consumer": "a"})
        assert unknown.status == 404
        leases = (await api.get("/status"))["leases"]
        assert [(lease["batch_id"], lease["consumer"]) for lease in leases] == [(2, "b")]
        assert (await api.call("GET", "/batch?consumer=")).status == 422


async def test_a_batch_whose_lease_has_ended_goes_to_another_and_the_first_is_refused():
    async with served(ApiSettings(lease_s=1e-9)) as api:
        await api.start_training()
        await api.post("/scored_data_list", [make_group(seed=seed) for seed in range(2)])
        first = await api.get("/batch?consumer=a")
        assert await api.get("/batch?consumer=b") == first
        late = await api.call("POST", "/batch/acknowledge", {"batch_id": 1, "consumer": "a"})
        assert (late.status, late.json["kind"]) == (409, "lost_lease")
        await api.post("/batch/acknowledge", {"batch_id": 1, "consumer": "b"})
        assert (await api.get("/status"))["current_step"] == 1


async def test_a_batch_whose_taker_left_in_the_middle_goes_to_the_next():
    async with served() as api:
        await api.start_training()
        groups = [make_group(2, 400_000, seed) for seed in range(2)]
        await api.post("/scored_data_list", groups)
        host, port = api.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
        writer.write(f"GET /batch HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert (await reader.readexactly(12)) == b"HTTP/1.1 200"
        writer.transport.abort()
        batch = None
        while batch is None:
            batch = (await api.get("/batch", **{"Accept-Encoding": "identity"}))["batch"]
        assert [group["tokens"] for group in batch] == [group["tokens"] for group in groups]
        status = await api.get("/status")
        assert (status["current_step"], status["bytes"], status["leases"]) == (1, 0, [])


async def test_a_group_sent_twice_under_one_id_is_kept_once():
    async with served() as api:
        await api.start_training()
        group = make_group(group_id="g1")
        answers = [await api.post("/scored_data", group) for _ in range(3)]
        assert answers == [{"status": "received"}] * 3
        status = await api.get("/status")
        assert (status["queue_size"], status["counts"]["repeated"]) == (1, 2)


async def test_groups_of_an_old_policy_are_dropped_at_hand_out_and_counted():
    async with served(ApiSettings(max_staleness=1)) as api:
        await api.start_training(starting_step=5, batch_size=2)
        versions = (3, 4, None, 5)
        for seed, version in enumerate(versions):
            await api.post("/scored_data", make_group(seed=seed, policy_version=version))
        batch = (await api.get("/batch"))["batch"]
        assert batch[0]["policy_version"] == 4
        status = await api.get("/status")
        assert (status["queue_size"], status["counts"]["dropped_as_stale"]) == (2, 1)
        assert (await api.get("/batch"))["batch"][0]["scores"] == [2.0, 2.0]


async def test_a_full_server_tells_senders_to_come_again():
    async with served(ApiSettings(max_queue_bytes=1)) as api:
        await api.start_training(batch_size=2)
        await api.post("/scored_data", make_group())
        answer = await api.call("POST", "/scored_data", make_group())
        assert (answer.status, answer.json["kind"]) == (503, "full")
        assert int(answer.headers["Retry-After"]) > 0
        assert (await api.get("/batch"))["batch"] is not None
        assert (await api.call("POST", "/scored_data", make_group())).status == 200


async def test_room_is_left_on_the_disk_to_hand_batches_out():
    async with served(ApiSettings(min_free_bytes=1 << 60)) as api:
        await api.start_training()
        answer = await api.call("POST", "/scored_data", make_group())
        assert (answer.status, answer.json["kind"]) == (503, "full")
        assert "must stay free" in answer.json["detail"]


async def test_pause_and_resume_reach_the_environments():
    async with served() as api:
        await api.start_training()
        env_id = await api.register_env()
        assert (await api.post("/pause", {}))["paused"]
        assert (await api.get("/status-env", {"env_id": env_id}))["paused"]
        assert not (await api.post("/resume", {}))["paused"]
        assert not (await api.get("/status-env", {"env_id": env_id}))["paused"]


async def test_a_pause_that_nobody_renews_ends_by_itself():
    async with served(ApiSettings(lease_s=1e-9)) as api:
        await api.start_training()
        env_id = await api.register_env()
        assert (await api.post("/pause", {}))["lease_s"] == 1e-9
        assert not (await api.get("/status-env", {"env_id": env_id}))["paused"]
        assert not (await api.get("/status"))["paused"]


async def test_the_binary_form_goes_in_and_out():
    async with served() as api:
        await api.start_training()
        groups = [wire_group(make_group(seed=seed), policy_version=seed) for seed in range(2)]
        body = encode_message([pack(group) for group in groups])
        kind = {"Content-Type": CONTENT_TYPE}
        answer = await api.call("POST", "/scored_data_list", body, kind)
        assert answer.json == {"status": "received", "groups_processed": 2}
        assert (await api.call("POST", "/scored_data", body, kind)).status == 422
        answer = await api.call("GET", "/batch?consumer=a", headers={"Accept": CONTENT_TYPE})
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        about, frames = decode_message(answer.body)
        assert about == {"batch_id": 1, "step": 0}
        back = [unpack(packed_group(head, packed)) for head, packed in frames]
        assert [group.policy_version for group in back] == [0, 1]
        assert [scored_group(group) for group in back] == [scored_group(group) for group in groups]


async def test_an_environment_that_falls_silent_is_not_waited_for_until_it_speaks_again():
    async with served(ApiSettings(env_timeout_s=0.05)) as api:
        await api.start_training()
        talking = await api.register_env(desired_name="a")
        silent = await api.register_env(desired_name="b", min_batch_allocation=0.5)
        await api.post("/scored_data_list", [make_group(env_id=talking)] * 2)
        batch = None
        while batch is None:  # a hang ends with the suite's own deadline
            batch = (await api.get("/batch"))["batch"]
        assert (await api.get("/status"))["environments"][silent]["expired"]
        await api.get("/status-env", {"env_id": silent})
        assert not (await api.get("/status"))["environments"][silent]["expired"]
        while not (await api.get("/status"))["environments"][silent]["expired"]:
            await asyncio.sleep(0)
        again = await api.post("/register-env", env_registration(desired_name="b"))
        assert (again["env_id"], again["wandb_name"]) == (silent, "b_0")


async def test_an_instance_that_comes_back_gets_its_name_back():
    async with served() as api:
        await api.start_training()
        first = await api.register_env(instance="x")
        assert await api.register_env(instance="y") != first
        assert await api.register_env(instance="x", weight=2.0) == first


# ---- who may call ----

TOKENS = {Scope.TRAINER: "t", Scope.ENVIRONMENT: "e", Scope.READER: "r"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/info", "ter"),
        ("GET", "/status", "ter"),
        ("GET", "/latest_example", "ter"),
        ("POST", "/scored_data", "e"),
        ("POST", "/register-env", "e"),
        ("GET", "/status-env", "e"),
        ("POST", "/register", "t"),
        ("GET", "/batch", "t"),
        ("POST", "/batch/acknowledge", "t"),
        ("GET", "/reset_data", "t"),
        ("POST", "/pause", "t"),
    ],
)
async def test_each_route_wants_the_token_of_its_scope(method: str, path: str, allowed: str):
    async with served(ApiSettings(tokens=TOKENS)) as api:
        assert (await api.call(method, path)).status == 401
        assert (await api.call("GET", "/health")).status == 200
        for token in ("t", "e", "r", "wrong"):
            headers = {"Authorization": f"Bearer {token}"}
            answer = await api.call(method, path, headers=headers)
            assert (answer.status != 403) is (token in allowed)


async def test_requests_of_web_pages_and_for_other_names_are_refused():
    async with served() as api:
        assert (await api.call("GET", "/info", headers={"Origin": "http://evil"})).status == 403
        assert (await api.call("GET", "/info", headers={"Host": "evil"})).status == 421


async def test_a_large_body_where_none_belongs_is_refused():
    async with served() as api:
        await api.start_training()
        body = env_registration(desired_name="n" * 2_000_000)
        assert (await api.call("POST", "/register-env", body)).status == 413
        packed = gzip.compress(json.dumps(body).encode())
        answer = await api.call("POST", "/register-env", packed, {"Content-Encoding": "gzip"})
        assert answer.status == 413


async def test_a_body_over_the_limit_is_refused():
    async with served(ApiSettings(max_body_bytes=1_000, max_inflated_bytes=2_000)) as api:
        large = json.dumps(make_group(2, 500)).encode()
        assert (await api.call("POST", "/scored_data", large)).status == 413
        bomb = gzip.compress(b" " * 100_000)
        answer = await api.call("POST", "/scored_data", bomb, {"Content-Encoding": "gzip"})
        assert answer.status == 400


def test_an_address_that_others_reach_needs_tokens():
    with pytest.raises(ConfigError, match="without tokens"):
        ApiSettings().check_address("0.0.0.0")
    ApiSettings(tokens=TOKENS).check_address("0.0.0.0")
    ServeSettings(host="0.0.0.0", token="t")


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease_s": 0.0},
        {"env_timeout_s": float("inf")},
        {"max_queue_bytes": 0},
        {"max_staleness": -1},
        {"tokens": {Scope.TRAINER: "t"}},
        {"tokens": dict.fromkeys(Scope, "t")},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]):
    with pytest.raises(ConfigError):
        ApiSettings(**wrong)  # type: ignore[arg-type]
