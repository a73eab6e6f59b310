"""`serve` while its server is away, has forgotten it, or is another one; and after this process was ended."""

import asyncio
from pathlib import Path

import pytest

from agentenv.serve.spool import Spool
from agentenv.testing import FakeLink
from tests.agentenv.serve.running import mixed, serving, until


async def test_groups_are_kept_while_the_server_is_away_and_sent_once_in_order(tmp_path: Path):
    env, link = mixed(max_batches_offpolicy=100), FakeLink(batch_size=8, loses_answers=1)
    async with serving(env, link, tmp_path) as running:
        await until(lambda: len(link.groups) >= 2)
        link.away = True
        sent = len(link.groups)
        await until(lambda: running.progress.counters.groups_done >= sent + 6)
        assert len(link.groups) == sent
        link.away = False
        await until(lambda: len(link.groups) >= sent + 6)
    assert link.repeated >= 1
    assert len(set(running.items)) == len(link.groups)


async def test_what_was_not_sent_when_the_process_ended_is_sent_by_the_next(tmp_path: Path):
    link = FakeLink(batch_size=8)
    async with serving(mixed(max_batches_offpolicy=100), link, tmp_path) as first:
        await until(lambda: link.groups)
        link.away = True
        await until(lambda: first.progress.counters.groups_done >= len(link.groups) + 3)
    link.away = False
    sent = len(link.groups)
    kept = first.progress.counters.groups_done - sent
    async with serving(mixed(), link, tmp_path):
        await until(lambda: len(link.groups) >= sent + kept)
    assert len({group.group_id for group in link.groups}) == len(link.groups)
    instances = {registration.instance for registration in link.registrations}
    assert len(instances) == 1
    assert {group.env_id for group in link.groups} == {0}


async def test_groups_left_over_from_another_training_are_dropped_and_counted(tmp_path: Path):
    link = FakeLink(batch_size=8)
    async with serving(mixed(max_batches_offpolicy=100), link, tmp_path) as first:
        await until(lambda: link.groups)
        link.away = True
        await until(lambda: first.progress.counters.groups_done >= len(link.groups) + 3)
    other = FakeLink(batch_size=4, num_steps=1)
    async with serving(mixed(total_steps=-1), other, tmp_path) as second:
        while not second.task.done():
            other.train()
            await asyncio.sleep(0.002)
    dropped = second.totals["dropped_after_collection"]
    assert dropped["left over from another training"] >= 3
    assert not {g.group_id for g in other.groups} & {g.group_id for g in link.groups}


@pytest.mark.parametrize("new_server", [True, False])
async def test_it_joins_again_when_the_server_forgot_it(tmp_path: Path, new_server: bool):
    env, link = mixed(), FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        await until(lambda: link.groups)
        link.forget(new_server=new_server)
        await until(lambda: len(link.registrations) == 2)
        before = len(link.groups)
        link.train()
        link.train()
        await until(lambda: len(link.groups) > before)
        assert not running.task.done()
    assert link.groups[-1].env_id == 1


async def test_what_is_left_over_for_the_server_it_joined_last_is_sent_to_it(tmp_path: Path):
    link = FakeLink(batch_size=8)
    async with serving(mixed(max_batches_offpolicy=100), link, tmp_path) as first:
        await until(lambda: link.groups)
        link.forget()
        await until(lambda: len(link.registrations) == 2)
        before = len(link.groups)
        await until(lambda: len(link.groups) >= before + 4)
        link.away = True
        await until(lambda: first.progress.counters.groups_done >= len(link.groups) + 3)
    link.away = False
    kept = first.progress.counters.groups_done - len(link.groups)
    async with serving(mixed(total_steps=0), link, tmp_path) as second:
        await second.task
    assert second.totals["groups_sent"] >= kept >= 3
    assert not second.totals["dropped_after_collection"]


async def test_what_is_finished_while_the_disk_may_hold_no_more_is_kept_when_the_end_comes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    env, link = mixed(max_num_workers=6, max_batches_offpolicy=1000), FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        await until(lambda: link.groups)
        link.away = True
        monkeypatch.setattr(Spool, "has_room", property(lambda spool: spool.pending < 3))
        most = 3 + 1 + 6  # on disk, on its way there, and not taken
        scored = running.progress.counters.outcomes
        await until(lambda: scored["scored"] >= 2 * (len(link.groups) + most))
    spool = await Spool.open(tmp_path / "spool", max_bytes=1)
    assert spool.pending > 3 + 1
    await spool.close()
