"""The server's database: its tables, and each change as a statement."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agentenv.api.leases import Batch
    from agentenv.api.queue import Entry
    from agentenv.api.registry import Environment, Registry

FORMAT = 1

TABLES = """
create table meta (key text primary key, value text not null) without rowid;
create table envs (env_id integer primary key, value text not null);
create table groups (
    seq integer primary key, rows integer not null, size integer not null, env_id integer,
    policy_version integer, group_id text, position integer
);
create table bodies (seq integer primary key, body blob not null);
create table batches (
    batch_id integer primary key, step integer not null, seqs text not null, consumer text,
    deadline real not null, acknowledged integer not null
);
create table answers (group_id text primary key, seq integer not null, answer text not null) without rowid;
create index answers_by_age on answers (seq);
"""

ARRIVALS = """
create temp view arrivals as
    select seq, rows, size, env_id, policy_version, group_id, position, body, null as answer, null as counts
    from groups join bodies using (seq);
create temp trigger arrive instead of insert on arrivals begin
    insert into groups values
        (new.seq, new.rows, new.size, new.env_id, new.policy_version, new.group_id, new.position);
    insert into bodies values (new.seq, new.body);
    insert or replace into answers
        select new.group_id, new.seq, new.answer where new.group_id is not null;
    insert or replace into meta select 'counts', new.counts where new.counts is not null;
end;
"""
"""All that a group changes by one statement, on the writer's connection: each call of SQLite gives up the interpreter's
lock, and waits for it while the event loop is busy. One statement is a transaction by itself, too."""


class Statement(NamedTuple):
    """One change."""

    sql: str
    values: tuple[Any, ...] = ()
    many: tuple[tuple[Any, ...], ...] | None = None
    """Run once for each of these, instead of for `values`."""


def insert_group(
    entry: Entry, body: bytes, answer: dict[str, Any], counts: Mapping[str, int] | None
) -> Statement:
    """A group that arrived, what its sender was told, and the counts where they are to be kept now."""
    row = (
        entry.seq,
        entry.rows,
        entry.size,
        entry.env_id,
        entry.policy_version,
        entry.group_id,
        entry.position,
        body,
        None if entry.group_id is None else json.dumps(answer),
        None if counts is None else json.dumps(counts),
    )
    return Statement("insert into arrivals values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def place_groups(entries: Iterable[Entry]) -> Statement:
    """Groups that left a buffer for the queue."""
    places = tuple((entry.position, entry.seq) for entry in entries)
    return Statement("update groups set position = ? where seq = ?", many=places)


def delete_groups(seqs: Iterable[int]) -> list[Statement]:
    """Groups nobody will ask for again."""
    rows = tuple((seq,) for seq in seqs)
    return [
        Statement("delete from groups where seq = ?", many=rows),
        Statement("delete from bodies where seq = ?", many=rows),
    ]


def put_registry(registry: Registry) -> Statement:
    """The trainer's settings and the step."""
    return put_meta("registry", registry.settings())


def put_meta(key: str, value: Any) -> Statement:
    """A single value."""
    return Statement("insert or replace into meta values (?, ?)", (key, json.dumps(value)))


def put_env(env: Environment) -> Statement:
    """An environment as it is now."""
    return Statement(
        "insert or replace into envs values (?, ?)", (env.env_id, json.dumps(asdict(env)))
    )


def put_batch(batch: Batch) -> Statement:
    """A batch as it is now."""
    row = (
        batch.batch_id,
        batch.step,
        json.dumps([entry.seq for entry in batch.entries]),
        batch.consumer,
        batch.deadline,
        batch.acknowledged,
    )
    return Statement("insert or replace into batches values (?, ?, ?, ?, ?, ?)", row)


def delete_batch(batch_id: int) -> Statement:
    """A batch nobody will acknowledge any more."""
    return Statement("delete from batches where batch_id = ?", (batch_id,))


def forget_answers(up_to: int) -> Statement:
    """Answers too old to be asked for again."""
    return Statement("delete from answers where seq <= ?", (up_to,))


def clear() -> list[Statement]:
    """What `/reset_data` clears."""
    return [
        Statement(f"delete from {table}")  # noqa: S608 - names from here
        for table in ("envs", "groups", "bodies", "batches", "answers")
    ]
