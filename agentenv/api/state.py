"""All the server knows, and what each request changes. Nothing here waits: it is used on the event loop alone.

Each change returns the statements that make it last. They must be committed before the caller is answered.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentenv.api import statements as sql
from agentenv.api.leases import Batch, Leases
from agentenv.api.queue import Entry, GroupQueue, total_rows
from agentenv.api.registry import Environment, EnvRegistration, Registry, TrainerRegistration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.api.codec import PackedGroup
    from agentenv.api.statements import Statement

MAX_ANSWERS = 200_000
"""Answers that are remembered, so that a group sent twice is stored once."""


@dataclass(slots=True)
class Change:
    """Statements, to be committed in one transaction."""

    statements: list[Statement] = field(default_factory=list)


@dataclass(slots=True)
class ServerState:
    """What `agentenv.api.store` loads, and the requests change."""

    server_id: str = field(default_factory=lambda: uuid4().hex)
    registry: Registry = field(default_factory=Registry)
    queue: GroupQueue = field(default_factory=GroupQueue)
    leases: Leases = field(default_factory=Leases)
    answers: OrderedDict[str, tuple[int, dict[str, Any]]] = field(default_factory=OrderedDict)
    """By group id: the group's number, and what its sender was told."""
    counts: Counter[str] = field(default_factory=Counter)
    """`groups`, `batches`, and what was dropped, refused or repeated, since the database was made."""
    next_seq: int = 1
    next_batch_id: int = 1
    latest: PackedGroup | None = None
    """The last group that reached the queue."""

    # ---- registration ----

    def register(self, trainer: TrainerRegistration) -> tuple[bool, Change]:
        """See `Registry.register`. Groups that came before stay."""
        took_effect = self.registry.register(trainer)
        return took_effect, Change([sql.put_registry(self.registry)] if took_effect else [])

    def register_env(self, env: EnvRegistration) -> tuple[Environment, Change]:
        """See `Registry.register_env`."""
        entry = self.registry.register_env(env)
        self.queue.resize(entry)
        return entry, Change([sql.put_env(entry)])

    def set_connected(self, env: Environment, *, connected: bool) -> Change:
        """An environment says goodbye, or speaks again."""
        env.connected, env.expired = connected, False
        return Change([sql.put_env(env)])

    def expire(self, env: Environment) -> Change:
        """An environment was silent for too long."""
        env.expired = True
        return Change([sql.put_env(env)])

    def pause_until(self, deadline: float) -> Change:
        """The trainer wants environments to wait until then; 0: to go on."""
        self.registry.paused_until = deadline
        return Change([sql.put_registry(self.registry)])

    def start(self) -> Change:
        """The trainer asked for a batch: environments may register from now on."""
        if self.registry.started:
            return Change()
        self.registry.started = True
        return Change([sql.put_registry(self.registry)])

    def keep_counts(self) -> Change:
        """Those of refusals are kept with the next change only: nobody is promised anything."""
        return Change([sql.put_meta("counts", self.counts)])

    def reset(self) -> Change:
        """Forget everything but the counts, the latest group and what `Registry.reset` keeps.

        The server is another one from then on: an environment that still uses its old id, which somebody else may have
        by now, joins again.
        """
        leased = sum(len(batch.entries) for batch in self.leases.open)
        self.counts["dropped_by_reset"] += len(self.queue.take_all()) + leased
        self.registry.reset()
        self.queue, self.leases = GroupQueue(), Leases()
        self.answers.clear()
        self.server_id = uuid4().hex
        kept = [
            sql.put_registry(self.registry),
            sql.put_meta("counts", self.counts),
            sql.put_meta("server_id", self.server_id),
        ]
        return Change([*sql.clear(), *kept])

    # ---- groups ----

    def put_groups(self, groups: Sequence[PackedGroup]) -> tuple[list[dict[str, Any]], Change]:
        """Take groups in; returns what their sender is told of each."""
        change = Change()
        answers = [
            self._put(group, change.statements, keep_counts=group is groups[-1]) for group in groups
        ]
        if (old := len(self.answers) - MAX_ANSWERS) > 0:
            for _ in range(old - 1):
                self.answers.popitem(last=False)
            change.statements.append(sql.forget_answers(self.answers.popitem(last=False)[1][0]))
        return answers, change

    def _put(
        self, group: PackedGroup, out: list[Statement], *, keep_counts: bool = False
    ) -> dict[str, Any]:
        if group.group_id is not None and group.group_id in self.answers:
            self.counts["repeated"] += 1
            out += self.keep_counts().statements if keep_counts else []
            return self.answers[group.group_id][1]
        entry = Entry(
            self.next_seq,
            group.rows,
            len(group.body),
            group.env_id,
            group.policy_version,
            group.group_id,
        )
        self.next_seq += 1
        self.counts["groups"] += 1
        queued, left = self.queue.put(entry, self.registry.env(group.env_id))
        stored = next((placed for placed in queued if placed.seq == entry.seq), entry)
        answer: dict[str, Any] = {"status": "received"}
        if left is not None:
            answer = {"status": "buffered", "buffer_size": left}
        counts = self.counts if keep_counts else None
        out.append(sql.insert_group(stored, group.body, answer, counts))
        if others := [placed for placed in queued if placed.seq != entry.seq]:
            out.append(sql.place_groups(others))
        if stored.position is not None:
            self.latest = group
        if group.group_id is not None:
            self.answers[group.group_id] = (entry.seq, answer)
        return answer

    def take_batch(
        self, consumer: str | None, now: float, lease_s: float, max_staleness: int | None
    ) -> tuple[Batch | None, Change]:
        """The batch a consumer gets now: the one it holds, one whose lease has ended, or a new one."""
        change = self.start()
        batch = self.leases.again(consumer, now, now + lease_s)
        if batch is not None:
            self.counts["redelivered"] += 1
            change.statements.append(sql.put_batch(batch))
            return batch, change
        if max_staleness is not None:
            change.statements += self._drop_stale(self.registry.step - max_staleness)
        entries = self.queue.take_batch(self.registry)
        if entries is None:
            return None, change
        batch = Batch(
            self.next_batch_id, self.registry.step, tuple(entries), consumer, now + lease_s
        )
        self.next_batch_id += 1
        self.registry.step += 1
        self.counts["batches"] += 1
        self.leases.add(batch)
        change.statements += [
            sql.put_batch(batch),
            sql.put_registry(self.registry),
            sql.put_meta("next_batch_id", self.next_batch_id),
            sql.put_meta("counts", self.counts),
        ]
        return batch, change

    def _drop_stale(self, oldest: int) -> list[Statement]:
        stale = self.queue.take_stale(oldest)
        if not stale:
            return []
        self.counts["dropped_as_stale"] += len(stale)
        return [
            *sql.delete_groups(entry.seq for entry in stale),
            sql.put_meta("counts", self.counts),
        ]

    def acknowledge(self, batch_id: int, consumer: str | None) -> Change:
        """See `Leases.acknowledge`, also for what it raises."""
        batch, first = self.leases.acknowledge(batch_id, consumer)
        if not first:
            return Change()
        change = Change([sql.put_batch(self.leases.done(batch_id))])
        change.statements += sql.delete_groups(entry.seq for entry in batch.entries)
        change.statements += [sql.delete_batch(old) for old in self.leases.forget_old()]
        return change

    def delivered(self, batch: Batch) -> Change:
        """A batch reached a client that does not acknowledge: it is gone."""
        if not self.leases.drop(batch):
            return Change()
        seqs = (entry.seq for entry in batch.entries)
        return Change([sql.delete_batch(batch.batch_id), *sql.delete_groups(seqs)])

    def undelivered(self, batch: Batch) -> Change:
        """A client that does not acknowledge left in the middle of its batch: the next one gets it."""
        ended = self.leases.end(batch)
        return Change([sql.put_batch(ended)] if ended else [])

    # ---- what is told ----

    @property
    def bytes(self) -> int:
        """Of all groups kept, those in trainers' hands too."""
        return self.queue.bytes + self.leases.bytes

    def status(self, now: float) -> dict[str, Any]:
        """What `/status` tells: the protocol's two keys, and ours."""
        leases = self.leases.open
        return {
            "current_step": self.registry.step,
            "queue_size": self.queue.queued,
            "paused": self.registry.paused_until > now,
            "registered": self.registry.registered,
            "buffered": self.queue.buffered,
            "unpackable": self.queue.unpackable(self.registry.batch_size),
            "bytes": self.bytes,
            "leases": [
                {
                    "batch_id": batch.batch_id,
                    "step": batch.step,
                    "consumer": batch.consumer,
                    "rows": total_rows(batch.entries),
                    "deadline": batch.deadline,
                }
                for batch in leases
            ],
            "counts": dict(self.counts),
            "environments": [self._env_status(env) for env in self.registry.envs],
            "server_id": self.server_id,
        }

    def _env_status(self, env: Environment) -> dict[str, Any]:
        buffer = self.queue.buffered_by_env().get(env.env_id)
        return {
            "env_id": env.env_id,
            "name": env.name,
            "connected": env.connected,
            "expired": env.expired,
            "group_size": env.group_size,
            "rows_queued": self.queue.rows_of(env.env_id),
            "groups_buffered": len(buffer) if buffer else 0,
        }

    def env_status(self, env: Environment, now: float) -> tuple[dict[str, Any], Change]:
        """What `/status-env` tells, in groups of this environment. Its group size follows its largest group."""
        registry, queue = self.registry, self.queue
        change = Change()
        size = max(env.group_size, queue.largest_of(env.env_id), 1)
        if size > env.group_size >= 1:
            env.group_size = size
            self.queue.resize(env)
            change.statements.append(sql.put_env(env))
        fractions = {minimum.env_id: minimum.fraction for minimum in registry.minima()}
        needed: dict[int | None, int] = {
            env_id: int(registry.batch_size * fraction) for env_id, fraction in fractions.items()
        }
        own = queue.rows_of(env.env_id)
        answer = {
            "current_step": registry.step,
            "queue_size": (own + queue.rows_left_by_others(env.env_id, needed)) // size,
            "unallocated_fraction": 1.0 - min(1.0, sum(fractions.values())),
            "self_queue_size": own // size,
            "max_group_size": queue.largest,
            "env_weight": registry.weight_of(env),
            "paused": registry.paused_until > now,
            "server_id": self.server_id,
        }
        return answer, change
