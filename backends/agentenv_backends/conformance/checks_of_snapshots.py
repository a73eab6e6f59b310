"""Starting slots from the frozen contents of another."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from agentenv_backends.conformance.checks import check, hold
from agentenv_backends.errors import SlotStateError
from agentenv_backends.requests import ExecRequest

if TYPE_CHECKING:
    from agentenv_backends.conformance.checks import Subject

_MAKE = """
mkdir -p a/b empty; echo one > a/b/f; chmod 750 a/b; printf 'x' > 'odd
name'; ln -s b a/l; ln -s /etc/passwd out; ln a/b/f hard; head -c 3000000 /dev/urandom > big; touch -d @1000000000 a/b/f
"""
_SHOW = (
    "find . ! -name . | LC_ALL=C sort | xargs -d '\\n' stat -c '%n %F %a %s %U' 2>/dev/null;"
    "stat -c %Y a/b/f; md5sum big a/b/f"
)


@check("snapshots", needs=("snapshot",))
async def a_slot_restored_from_a_snapshot_has_its_contents(subject: Subject) -> None:
    """Names, kinds, modes, sizes, times, contents; and it may change them all."""
    backend = subject.backend
    async with subject.slot() as source:
        await subject.output(source, _MAKE)
        made = await subject.output(source, _SHOW)
        snapshot = await backend.snapshot(source)
        try:
            async with subject.slot() as member:
                await backend.restore(member, snapshot)
                shown = await subject.output(member, _SHOW)
                hold(shown == made, f"it shows {shown!r}, the source {made!r}")
                await subject.output(
                    member, "echo two >> a/b/f; rm big hard; mv a c; chmod 700 empty; touch new"
                )
        finally:
            await backend.drop_snapshot(snapshot)


@check("snapshots", needs=("snapshot",))
async def no_slot_sees_anothers_writes_through_a_snapshot(subject: Subject) -> None:
    """Nor do the source's later writes show, also after the snapshot was dropped."""
    backend = subject.backend
    async with subject.slot() as source:
        await subject.output(source, "echo shared > f; echo gone > g")
        snapshot = await backend.snapshot(source)
        await subject.output(source, "echo later >> f; rm g; echo planted > h")
        async with subject.slot() as one, subject.slot() as two:
            await asyncio.gather(backend.restore(one, snapshot), backend.restore(two, snapshot))
            await subject.output(one, "echo from-one >> f; rm g; echo x > h")
            await backend.drop_snapshot(snapshot)
            await backend.drop_snapshot(snapshot)
            seen = await subject.output(two, "cat *; ls")
            hold(seen == "shared\ngone\nf\ng\n", f"the other member sees {seen!r}")
        hold(
            await subject.output(source, "cat f; ls") == "shared\nlater\nf\nh\n",
            "the source changed",
        )


@check("snapshots", needs=("snapshot",))
async def a_slot_that_was_used_and_a_snapshot_that_was_dropped_are_refused(
    subject: Subject,
) -> None:
    """With `SlotStateError`, before anything is changed."""
    backend = subject.backend
    async with subject.slot() as source, subject.slot() as used:
        snapshot = await backend.snapshot(source)
        await subject.ask(used, ExecRequest("echo mine > f"))
        for attempt in ("used", "dropped"):
            if attempt == "dropped":
                await backend.drop_snapshot(snapshot)
            try:
                async with subject.slot() as fresh:
                    await backend.restore(used if attempt == "used" else fresh, snapshot)
            except SlotStateError:
                continue
            hold(False, f"a slot was restored although it was {attempt}")
        hold(await subject.output(used, "cat f") == "mine\n", "the used slot changed")


@check("snapshots", needs=("snapshot",))
async def a_snapshot_remembered_under_a_key_is_found_under_that_key_alone(
    subject: Subject,
) -> None:
    """With what was kept with it, also after its maker has let go of it."""
    backend, key = subject.backend, secrets.token_hex(16)
    async with subject.slot() as source:
        await subject.output(source, "echo kept > f")
        snapshot = await backend.snapshot(source)
    await backend.remember_snapshot(key, snapshot, b"a note")
    await backend.drop_snapshot(snapshot)
    hold(await backend.recall_snapshot(key + "x") is None, "another key finds something")
    known = await backend.recall_snapshot(key)
    if known is None:
        hold(False, "nothing is found under the key")
        return
    hold(known.note == b"a note", f"the note is {known.note!r}")
    try:
        async with subject.slot() as member:
            await backend.restore(member, known.snapshot)
            seen = await subject.output(member, "cat f; ls")
            hold(seen == "kept\nf\n", f"what is restored from it is {seen!r}")
    finally:
        await backend.drop_snapshot(known.snapshot)
