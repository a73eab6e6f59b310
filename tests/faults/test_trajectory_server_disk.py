"""A trajectory server whose disk is full refuses what it cannot keep, keeps what it has promised, and recovers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agentenv.api.codec import CONTENT_TYPE, encode_message, pack
from agentenv.api.group import wire_group
from tests.interop.api import Api, marks
from tests.interop.servers import AgentEnvServer
from tests.small_disk import small_disk

pytestmark = pytest.mark.slow
ROWS, TOKENS = 8, 65_536
_DISK_MIB, _KEPT_FREE_MIB = 176, 128
_MOST_GROUPS = 100


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", f"{_DISK_MIB}m") as mounted:
        yield mounted.path


def incompressible(mark: int) -> bytes:
    """A group of 2 MiB in the binary form."""
    tokens = np.random.default_rng(mark).integers(0, 2**31 - 1, (ROWS, TOKENS), np.int32)
    tokens[:, 0] = mark
    group = {"tokens": tokens, "masks": tokens, "scores": np.arange(ROWS)}
    return encode_message([pack(wire_group(group))])


def post(api: Api, mark: int) -> tuple[int, str]:
    """The status of the answer, and its text."""
    headers = {"content-type": CONTENT_TYPE}
    answer = api.http.post("/scored_data", content=incompressible(mark), headers=headers)
    return answer.status_code, answer.text


def fill(api: Api) -> tuple[int, str]:
    """Send groups until one is refused. Returns how many were promised, and what the refusal says."""
    for mark in range(_MOST_GROUPS):
        status, text = post(api, mark)
        if status != 200:
            assert status in {503, 507}, text[:500]
            return mark, text
    raise AssertionError("the disk never became full")


def test_a_full_disk_is_a_clear_refusal_and_room_comes_back_when_the_trainer_takes(
    disk: Path, tmp_path: Path
):
    kept_free = ("--min-free-bytes", str(_KEPT_FREE_MIB << 20))
    with AgentEnvServer(tmp_path / "server", *kept_free, data=disk / "data") as server:
        with Api(server.url) as api:
            api.start(batch_size=ROWS)
            promised, reason = fill(api)
            assert promised > 5
            assert "must stay free" in reason
            assert api.status()["queue_size"] == promised
        server.kill()
        server.start()
        with Api(server.url) as api:
            assert api.status()["queue_size"] == promised
            assert post(api, promised)[0] in {503, 507}
            taken = [marks(api.batch()) for _ in range(promised)]
            assert taken == [[mark] for mark in range(promised)]
            assert api.batch() is None
            status, text = post(api, promised)
            assert status == 200, text
            assert marks(api.batch()) == [promised]
