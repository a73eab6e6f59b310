"""Bodies may be gzipped on the way in, and large ones are on the way out for who asks for it."""

import gzip
import json

import pytest

from tests.interop.api import Api, group, marks

JSON = {"content-type": "application/json"}
GZIP = {"content-encoding": "gzip"} | JSON


def large(rows: int, tokens: int, mark: int = 0) -> bytes:
    """A group as bytes of JSON, far larger than what is worth compressing."""
    return json.dumps(group(rows, length=tokens, mark=mark)).encode()


def test_a_gzipped_group_is_taken(api: Api):
    api.start(batch_size=8)
    body = gzip.compress(large(8, 256, mark=9))
    answer = api.http.post("/scored_data", content=body, headers=GZIP)
    assert answer.json() == {"status": "received"}
    assert marks(api.batch()) == [9]


def test_a_body_of_several_gzip_members_is_one(api: Api):
    api.start(batch_size=2)
    whole = large(2, 64, mark=9)
    body = gzip.compress(whole[:100]) + gzip.compress(whole[100:])
    assert api.http.post("/scored_data", content=body, headers=GZIP).status_code == 200
    assert marks(api.batch()) == [9]


def test_what_is_no_gzip_is_refused(api: Api):
    api.start()
    answer = api.http.post("/scored_data", content=large(2, 64), headers=GZIP)
    assert answer.status_code == 400


def test_other_encodings_are_not_looked_at(api: Api):
    api.start(batch_size=2)
    headers = {"content-encoding": "identity"} | JSON
    assert api.http.post("/scored_data", content=large(2, 64), headers=headers).status_code == 200


def test_small_answers_are_never_compressed(api: Api):
    answer = api.http.get("/info", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("accepted", ["gzip", "gzip, deflate, br"])
def test_a_large_batch_is_gzipped_for_who_accepts_it(api: Api, accepted: str):
    api.start(batch_size=16)
    api.http.post("/scored_data", content=large(16, 512), headers=JSON)
    answer = api.http.get("/batch", headers={"accept-encoding": accepted})
    assert answer.headers["content-encoding"] == "gzip"
    (got,) = answer.json()["batch"]
    assert got["tokens"] == json.loads(large(16, 512))["tokens"]


def test_a_large_batch_is_plain_for_who_does_not(api: Api):
    api.start(batch_size=16)
    api.http.post("/scored_data", content=large(16, 512), headers=JSON)
    answer = api.http.get("/batch", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in answer.headers
    assert len(answer.json()["batch"][0]["tokens"]) == 16


def test_a_gzipped_list_of_groups_makes_a_batch(api: Api):
    api.start(batch_size=32)
    many = [group(8, mark=mark, length=512) for mark in range(4)]
    body = gzip.compress(json.dumps(many).encode())
    answer = api.http.post("/scored_data_list", content=body, headers=GZIP)
    assert answer.json()["groups_processed"] == 4
    batch = api.batch()
    assert batch is not None
    assert sum(len(each["tokens"]) for each in batch) == 32
