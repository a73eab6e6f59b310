"""Which protections are really in force on this machine, found out by trying from inside a slot.

    for protection in await examine(LocalConfig()): ...

Nothing is concluded from configuration: slots are opened as a run would open them, a probe runs in
one, and what the probe can do is what an agent can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import socket
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv_backends._findings import Findings, InForce, Protection, assess
from agentenv_backends.config import LocalConfig
from agentenv_backends.errors import BackendError, InfrastructureError
from agentenv_backends.local import LocalProvider
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest, WriteRequest
from agentenv_backends.results import ExecResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentenv_backends.base import Slot

__all__ = ["InForce", "Protection", "examine"]

_SMALL = {"slots": 2, "max_hosts": 1, "min_hosts": 1, "memory_mb": 64, "max_processes": 40}
_SMALL_DISKS = {"disk_mb": 12, "tmp_mb": 6}
_SENSITIVE = ("/root", "/home", "/var/run/docker.sock", "/run/docker.sock", "/etc/shadow")


async def examine(config: LocalConfig | None = None) -> list[Protection]:
    """Try every protection that `config` (None: the defaults) asks for.

    Limits are tried at a small size, so that trying them harms nothing; whether they hold does not
    depend on it. Takes a few seconds. Where no slot can be opened at all there is one entry, which
    says why and what to do; nothing is raised for that.
    """
    small = (config or LocalConfig()).model_copy(update=_SMALL | _SMALL_DISKS)
    try:
        with _bait() as bait:
            return assess(await _probe(small, bait))
    except BackendError as error:
        return [Protection("slots can be opened", InForce.NO, type(error).__name__, str(error))]


@contextlib.contextmanager
def _bait() -> Iterator[dict[str, Any]]:
    """Things of the driver's that a slot must not reach, and how the probe would know them."""
    secret, name = secrets.token_hex(16), f"agentenv-doctor-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        abstract.listen()
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix=f"{name}-"))
        os.environ["AGENTENV_DOCTOR_SECRET"] = secret
        stack.callback(os.environ.pop, "AGENTENV_DOCTOR_SECRET")
        yield {
            "secret": secret,
            "neighbour": f"{name}-neighbour",
            "abstract": name,
            "port": port.getsockname()[1],
            "paths": [file.name, _ssh_folder(), *_SENSITIVE],
            "driver": _of_this_process("cmdline"),
            "driver_pid": os.getpid(),
            "driver_environment": hashlib.sha256(_of_this_process("environ").encode()).hexdigest(),
        }


def _ssh_folder() -> str:
    """Also for a user that this machine knows no home of, as in some containers."""
    try:
        return str(Path.home() / ".ssh")
    except RuntimeError:
        return "/root/.ssh"


def _of_this_process(name: str) -> str:
    text = Path(f"/proc/self/{name}").read_bytes()[:65536].replace(b"\0", b" ")
    return text.decode("utf-8", "replace")


def _uids_below(pid: int) -> frozenset[int]:
    """User ids of every descendant of a process."""
    uids: set[int] = set()
    waiting = [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(OSError):  # it may end while we look
            children = [
                int(child)
                for task in (folder / "task").iterdir()
                for child in (task / "children").read_text(encoding="ascii").split()
            ]
            uids |= {Path(f"/proc/{child}").stat().st_uid for child in children}
            waiting += children
    return frozenset(uids)


async def _probe(config: LocalConfig, bait: dict[str, Any]) -> Findings:
    provider = LocalProvider(config)
    async with SlotPool(provider, config.pool_settings()) as pool:
        slot, neighbour = await asyncio.gather(pool.acquire("doctor"), pool.acquire("neighbour"))
        await pool.execute(neighbour, WriteRequest(bait["neighbour"], b"mine"))

        async def run(part: str, asked: dict[str, Any]) -> dict[str, Any]:
            return await _run_part(pool, slot, part, asked)

        disk = {"megabytes": 2 * max(_SMALL_DISKS.values())}
        return Findings(
            config=config,
            host=provider.facts,
            uids=_uids_below(provider.hosts[slot.host_id].pid),
            facts=await run("facts", bait),
            memory=await run(
                "memory",
                {"megabytes": _memory_in_all(config), "process_megabytes": config.memory_mb},
            ),
            forks=await run("forks", {"most": config.max_processes + 60}),
            workspace=await run("disk", disk | {"folder": "."}),
            tmp=await run("disk", disk | {"folder": "/tmp"}),  # noqa: S108 - the slot's
        )


def _memory_in_all(config: LocalConfig) -> int:
    """What a slot's processes and its files in memory may take together, and then some."""
    return config.memory_mb + config.disk_mb + 2 * config.tmp_mb + 32


async def _run_part(pool: SlotPool, slot: Slot, part: str, asked: dict[str, Any]) -> dict[str, Any]:
    # By standard input alone: what is on a command line or in a variable could be found by the probe.
    source = resources.files("agentenv_backends").joinpath("_probe.py").read_text("utf-8")
    request = ExecRequest("exec python3 -", stdin=f"{source}\nrun({part!r}, {asked!r})\n".encode())
    answer = await pool.execute(slot, request)
    if not isinstance(answer, ExecResult) or answer.exit_code != 0:
        raise InfrastructureError(f"the probe's part {part!r} did not run: {answer}")
    found: dict[str, Any] = json.loads(answer.stdout.text())
    return found
