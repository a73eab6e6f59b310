"""What must not be possible from inside a slot: tried, not concluded from settings."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from agentenv_backends._bait import bait
from agentenv_backends.conformance.checks import check, hold
from agentenv_backends.requests import WriteRequest

if TYPE_CHECKING:
    from agentenv_backends.base import Slot
    from agentenv_backends.conformance.checks import Subject


async def _probe(subject: Subject, slot: Slot, asked: dict[str, Any]) -> dict[str, Any]:
    # By standard input alone: what is on a command line or in a variable could be found by the probe.
    source = resources.files("agentenv_backends").joinpath("_probe.py").read_text("utf-8")
    text = f"{source}\nrun('facts', {asked!r})\n"
    found = await subject.output(slot, "exec python3 -", stdin=text.encode(), timeout_s=60)
    facts: dict[str, Any] = json.loads(found)
    return facts


@check("confinement")
async def the_probe_finds_nothing_writable_visible_or_possible(subject: Subject) -> None:
    """Kernel settings, devices, namespaces, other processes, the driver's secrets, a neighbour's files."""
    isolation = subject.backend.capabilities.isolation
    hold(isolation != "none", "isolation 'none' confines nothing; it is for code that is trusted")
    with bait() as asked:
        async with subject.slot() as neighbour, subject.slot() as slot:
            await subject.ask(neighbour, WriteRequest(asked["neighbour"], b"mine"))
            facts = await _probe(subject, slot, asked)
    wrong = {
        "capabilities": facts["capabilities"] != 0,
        "root": facts["uid"] == 0 and isolation != "bubblewrap",
        "groups": bool({0, *range(1, 100)} & set(facts["groups"])),
        "may gain privileges": not facts["no_new_privileges"],
        "no system call filter": not facts["seccomp"],
        f"can write {facts['writable']}": bool(facts["writable"]),
        f"can do {facts['possible']}": bool(facts["possible"]),
        "sees the driver": facts["driver_seen"],
        f"reads {facts['paths_seen']}": bool(facts["paths_seen"]),
        "finds a neighbour's file": facts["neighbour_seen"],
        "finds the driver's secret": facts["secret_seen"],
    }
    hold(not any(wrong.values()), "; ".join(name for name, found in wrong.items() if found))


@check("confinement", needs=("network_control",))
async def without_network_nothing_outside_answers(subject: Subject) -> None:
    """Neither the driver's loopback nor an abstract socket, and there is no interface."""
    with bait() as asked:
        async with subject.slot() as slot:
            facts = await _probe(subject, slot, asked)
    hold(not facts["host_port"], "the driver's loopback answers")
    hold(not facts["abstract_socket"], "an abstract socket of the driver answers")
    hold(not facts["interfaces"], f"there are interfaces: {facts['interfaces']}")


@check("confinement")
async def two_slots_share_neither_files_nor_processes(subject: Subject) -> None:
    """Not by the names they go by, and not by signals."""
    async with subject.slot() as one, subject.slot() as two:
        await subject.output(
            one, "umask 0; echo secret > f; chmod 777 . f; echo x > $TMPDIR/t; chmod 777 $TMPDIR/t"
        )
        look = f"cat {one.workspace_dir}/f $TMPDIR/t /tmp/t /var/tmp/t /dev/shm/t 2>/dev/null; true"
        hold(await subject.output(two, look) == "", "a slot reads another's files")
        await subject.output(two, f"ls {one.workspace_dir} || true")
        if one.workspace_dir != two.workspace_dir:
            wrote = await subject.run(two, f"echo x > {one.workspace_dir}/planted")
            hold(wrote.exit_code != 0, "a slot writes into another's workspace")
        hold(await subject.output(one, "ls") == "f\n", "something was planted")
