import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from agentenv.api import store as store_module
from agentenv.api.settings import ApiSettings
from agentenv.api.statements import Statement, put_meta
from agentenv.api.store import DATABASE_NAME, Store
from agentenv.errors import ConfigError, TrajectoryStoreError
from tests.agentenv.api.groups import make_group
from tests.agentenv.api.served import served


@asynccontextmanager
async def opened(store: Path | Store):
    store = store if isinstance(store, Store) else Store(store)
    store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_a_restart_goes_on_with_everything(tmp_path):
    settings = ApiSettings(data=tmp_path)
    async with served(settings) as api:
        await api.start_training(starting_step=3)
        env_id = await api.register_env(group_size=4, min_batch_allocation=0.5, weight=2.0)
        await api.post("/scored_data_list", [make_group(seed=seed) for seed in range(5)])
        await api.post("/scored_data", make_group(env_id=env_id, rows=3, group_id="g"))
        await api.post("/pause", {})
        await api.post("/disconnect-env", {"env_id": env_id})
        held = await api.get("/batch?consumer=a")
        gone = await api.get("/batch")
        before = await api.get("/status")
    async with served(settings) as api:
        status = await api.get("/status")
        del before["counts"], status["counts"]
        assert status == before
        assert (status["current_step"], status["queue_size"], status["buffered"]) == (5, 1, 1)
        assert (await api.get("/info"))["batch_size"] == 4
        assert await api.get("/batch?consumer=a") == held
        assert gone["batch"][0]["scores"] == [2.0, 2.0]
        await api.post("/scored_data", make_group(env_id=env_id, rows=3, group_id="g"))
        assert (await api.get("/status"))["buffered"] == 1
        assert (await api.get("/latest_example"))["scores"] == [4.0, 4.0]
        answer = await api.post("/scored_data", make_group(env_id=env_id, rows=1))
        assert answer == {"status": "buffered", "buffer_size": 0}
        assert (await api.get("/status"))["queue_size"] == 3
        await api.post("/batch/acknowledge", {"batch_id": held["batch_id"], "consumer": "a"})
    async with served(settings) as api:
        again = {"batch_id": held["batch_id"], "consumer": "a"}
        assert (await api.post("/batch/acknowledge", again))["status"] == "success"
        assert (await api.get("/status"))["leases"] == []


async def test_an_endless_pause_of_an_earlier_version_does_not_last(tmp_path):
    settings = ApiSettings(data=tmp_path)
    async with served(settings) as api:
        await api.start_training()
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as database, database:
        (text,) = database.execute("select value from meta where key = 'registry'").fetchone()
        registry = json.loads(text) | {"paused": True}
        del registry["paused_until"]
        database.execute(
            "update meta set value = ? where key = 'registry'", (json.dumps(registry),)
        )
    async with served(settings) as api:
        status = await api.get("/status")
        assert (status["registered"], status["paused"]) == (True, False)


async def test_a_file_may_be_named_instead_of_a_folder(tmp_path):
    async with served(ApiSettings(data=tmp_path / "x" / "own.db")) as api:
        assert api.server.service.database == tmp_path / "x" / "own.db"
        assert (tmp_path / "x" / "own.db").is_file()


async def test_without_a_place_nothing_is_left():
    async with served() as api:
        database = api.server.service.database
        assert database.is_file()
    assert not database.parent.exists()


@pytest.mark.parametrize(("every", "level"), [(False, 1), (True, 2)])
async def test_commits_are_synced_each_by_itself_or_when_asked(tmp_path, every, level):
    store = Store(tmp_path / "a.db", sync_every_commit=every)
    store.sync()  # nothing to do yet, not even a log
    connection = store._prepared()
    assert connection.execute("pragma synchronous").fetchone() == (level,)
    connection.close()
    async with opened(store) as store:
        await store.submit([put_meta("a", 1)])
        assert store._unsynced is not every
        store.sync()
        assert not store._unsynced


async def test_a_long_log_begins_anew_though_commits_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_LONG_LOG_BYTES", 1)
    monkeypatch.setattr(store_module, "_RESTART_PAGES", 8)
    rounds, commits, size = 20, 5, 50_000
    async with opened(tmp_path / "a.db") as store:
        for _ in range(rounds):
            changes = [put_meta(f"{number}", "x" * size) for number in range(commits)]
            syncing = asyncio.to_thread(store.sync)
            await asyncio.gather(syncing, *(store.submit([change]) for change in changes))
        assert (tmp_path / "a.db-wal").stat().st_size < rounds * commits * size / 2
    rows = sqlite3.connect(tmp_path / "a.db")
    assert rows.execute("select count(*) from meta where length(value) > 9999").fetchone() == (5,)
    rows.close()


async def test_two_servers_do_not_share_a_file(tmp_path):
    async with opened(tmp_path / "a.db"):
        with pytest.raises(ConfigError, match="in use"):
            Store(tmp_path / "a.db").open()
    async with opened(tmp_path / "a.db"):
        pass


async def test_a_file_that_is_no_database_of_ours_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("no database" * 1_000)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table meta (key text, value text)")
    other.close()
    for name in ("text.db", "other.db"):
        with pytest.raises(ConfigError, match="cannot be used"):
            Store(tmp_path / name).open()


async def test_a_commit_that_fails_fails_all_behind_it_until_the_state_is_loaded_again(tmp_path):
    async with opened(tmp_path / "a.db") as store:
        await store.submit([put_meta("a", 1)])
        results = await asyncio.gather(
            store.submit([put_meta("b", 1), Statement("insert into nothing values (1)")]),
            store.submit([put_meta("c", 1)]),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [TrajectoryStoreError] * 2
        with pytest.raises(TrajectoryStoreError):
            await store.submit([put_meta("d", 1)])
        store.admit()
        await store.submit([put_meta("e", 1)])
    rows = sqlite3.connect(tmp_path / "a.db")
    keys = {key for (key,) in rows.execute("select key from meta")}
    rows.close()
    assert keys == {"a", "e", "format", "server_id"}


async def test_a_server_whose_disk_fails_says_so_keeps_nothing_of_it_and_goes_on(tmp_path):
    async with served(ApiSettings(data=tmp_path)) as api:
        await api.start_training()
        await api.post("/scored_data", make_group())
        meddler = sqlite3.connect(tmp_path / DATABASE_NAME)
        trigger = (
            "create trigger full before insert on bodies begin select raise(abort, 'disk'); end"
        )
        meddler.execute(trigger)
        answers = await asyncio.gather(
            *(api.call("POST", "/scored_data", make_group(seed=seed)) for seed in range(4))
        )
        assert [answer.status for answer in answers] == [503] * 4
        assert "disk" in answers[0].json["detail"]
        assert (await api.get("/status"))["queue_size"] == 1
        meddler.execute("drop trigger full")
        meddler.close()
        await api.post("/scored_data", make_group(seed=1))
        batch = (await api.get("/batch"))["batch"]
        assert [group["scores"][0] for group in batch] == [0.0, 1.0]
