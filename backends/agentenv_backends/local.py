"""Hosts on this machine: the sandbox server as a subprocess, slots under bubblewrap.

What protects whom from what is decided by the server (`sandboxd`), which refuses to start where a
protection that was asked for is missing. `agentenv_backends.doctor` shows what is in force.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import sys
from typing import TYPE_CHECKING

from agentenv_backends._local_sweep import sweep
from agentenv_backends._process import ServerProcess
from agentenv_backends._uids import RANGE_SIZE, UidRange, claim_uid_range
from agentenv_backends.base import Capabilities
from agentenv_backends.connection import HostConnection, connect_host
from agentenv_backends.errors import (
    BackendStoppedError,
    BackendUnavailableError,
    HostStartError,
)
from agentenv_backends.sandboxd.settings import HostFacts, HostSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends.config import LocalConfig
    from agentenv_backends.errors import SlotLostError
    from agentenv_backends.host import Leftover
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result

_log = logging.getLogger(__name__)

_GOODBYE_S = 5.0
"""How long a server may take to end its slots and itself before it is killed."""
_KILL_S = 2.0
_WAY_OUT = (
    "`apt-get install bubblewrap`; or set isolation: none, which runs commands as the user who runs "
    "this program, with all its files, its processes and the network in their reach"
)


class LocalHost:
    """A sandbox server of this machine. Implements `Host`."""

    def __init__(
        self, connection: HostConnection, process: ServerProcess, uids: UidRange | None
    ) -> None:
        self.host_id = connection.host_id
        self.pid = process.pid
        """Of the sandbox server, the ancestor of every process in its slots."""
        self._connection = connection
        self._process = process
        self._uids = uids
        self._closing: asyncio.Task[None] | None = None

    @property
    def facts(self) -> HostFacts:
        """What is in force in its slots, as the server found it."""
        assert self._connection.facts is not None
        return self._connection.facts

    def on_slot_lost(self, callback: Callable[[str, SlotLostError], None]) -> None:
        """See `Host.on_slot_lost`."""
        self._connection.on_slot_lost(callback)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """See `Host.on_lost`."""
        self._connection.on_lost(lambda reason: callback(self._explained(reason)))

    def workspace_dir(self, slot_id: str) -> str:
        """See `Host.workspace_dir`."""
        return self._connection.workspace_dir(slot_id)

    async def open_slot(self, slot_id: str) -> None:
        """See `Host.open_slot`."""
        await self._connection.open_slot(slot_id)

    async def close_slot(self, slot_id: str) -> None:
        """See `Host.close_slot`."""
        await self._connection.close_slot(slot_id)

    async def execute(self, slot_id: str, request: Request) -> Result:
        """See `Host.execute`."""
        return await self._connection.execute(slot_id, request)

    async def take_snapshot(self, slot_id: str, snapshot_id: str) -> None:
        """See `Host.take_snapshot`."""
        await self._connection.take_snapshot(slot_id, snapshot_id)

    async def restore_snapshot(self, slot_id: str, snapshot_id: str) -> None:
        """See `Host.restore_snapshot`."""
        await self._connection.restore_snapshot(slot_id, snapshot_id)

    async def fetch_snapshot(self, snapshot_id: str) -> bytes:
        """See `Host.fetch_snapshot`."""
        return await self._connection.fetch_snapshot(snapshot_id)

    async def put_snapshot(self, snapshot_id: str, archive: bytes) -> None:
        """See `Host.put_snapshot`."""
        await self._connection.put_snapshot(snapshot_id, archive)

    async def drop_snapshot(self, snapshot_id: str) -> None:
        """See `Host.drop_snapshot`."""
        await self._connection.drop_snapshot(snapshot_id)

    async def ping(self) -> None:
        """See `Host.ping`."""
        await self._connection.ping()

    async def close(self) -> None:
        """See `Host.close`. A server that does not end by itself within seconds is killed."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    def _explained(self, reason: str) -> str:
        return f"{reason} {self._process.complaints()}".strip()

    async def _close(self) -> None:
        patience_s = _KILL_S
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._connection.close()
        except TimeoutError:
            patience_s = 0
        finally:
            ended_well = await self._process.end(patience_s)
            if self._uids is not None:
                self._uids.release()
        if not ended_well:  # what it would have removed itself
            await asyncio.to_thread(sweep, remove=True)


class LocalProvider:
    """Starts `LocalHost`s. Implements `HostProvider`."""

    def __init__(self, config: LocalConfig) -> None:
        self.hosts: dict[str, LocalHost] = {}
        """Hosts that were started, also those that have ended since."""
        self._config = config
        self._run = secrets.token_hex(4)
        self._facts: HostFacts | None = None

    @property
    def facts(self) -> HostFacts:
        """What is in force in slots on this machine; valid after `prepare`."""
        if self._facts is None:
            raise BackendStoppedError("nothing is known of this machine before `prepare`")
        return self._facts

    async def prepare(self) -> Capabilities:
        """See `HostProvider.prepare`. Starts a host, which tries all that was asked for, and ends
        it.
        """
        if not sys.platform.startswith("linux"):
            raise BackendUnavailableError(f"local sandboxes need Linux, this is {sys.platform}")
        if self._config.isolation == "bubblewrap" and shutil.which("bwrap") is None:
            raise BackendUnavailableError(f"bubblewrap (bwrap) is not installed: {_WAY_OUT}")
        try:
            host = await self.launch("trial")
        except HostStartError as error:
            raise BackendUnavailableError(f"this machine gives no sandbox: {error}") from error
        self._facts = host.facts
        await host.close()
        for sentence in self._facts.gives_up:
            _log.warning("local sandboxes: %s", sentence)
        return _capabilities(self._facts)

    async def launch(self, host_id: str) -> LocalHost:
        """See `HostProvider.launch`."""
        uids = self._claim_uids(host_id)
        process: ServerProcess | None = None
        try:
            process = ServerProcess.start()
            connection = await connect_host(
                process.stream,
                host_id,
                self._host_settings(host_id, uids),
                timeout_s=self._config.launch_timeout_s,
            )
        except BaseException as error:
            complaints = await _clean_up(process, uids)
            if isinstance(error, HostStartError | OSError):
                raise HostStartError(f"{error} {complaints}".strip()) from error
            raise
        host = self.hosts[host_id] = LocalHost(connection, process, uids)
        return host

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """See `HostProvider.sweep`. Whatever a host makes has its pid and start time in its name."""
        return await asyncio.to_thread(sweep, remove=remove)

    def _claim_uids(self, host_id: str) -> UidRange | None:
        if os.geteuid() != 0 or self._config.isolation == "none":
            return None
        uids = claim_uid_range()
        if uids is None:
            raise HostStartError(
                f"host {host_id}: every range of user ids for slots is taken by other hosts of this "
                "machine; end some of them, or run as a user other than root"
            )
        return uids

    def _host_settings(self, host_id: str, uids: UidRange | None) -> HostSettings:
        config = self._config
        return HostSettings(
            run_id=f"{self._run}-{host_id}",
            isolation=config.isolation,
            memory_mb=config.memory_mb,
            disk_mb=config.disk_mb,
            tmp_mb=config.tmp_mb,
            max_processes=config.max_processes,
            cpus=config.cpus,
            open_files=config.open_files,
            folders=config.folders,
            variables=config.plain_variables,
            allow_network=config.allow_network,
            uid_base=uids.base if uids is not None else 0,
            uid_count=RANGE_SIZE,
            require=config.require_limits + (("cpus",) if config.cpus is not None else ()),
            lease_s=config.lease_s,
            owner_pid=os.getpid(),
        )


async def _clean_up(process: ServerProcess | None, uids: UidRange | None) -> str:
    """End what a launch that failed has left; return what the server had to say about it."""
    complaints = ""
    try:
        if process is not None:
            process.stream.close()
            process.kill()
            complaints = process.complaints()
            await process.end(_KILL_S)
    finally:
        if uids is not None:
            uids.release()
    return complaints


def _capabilities(facts: HostFacts) -> Capabilities:
    return Capabilities(
        isolation=facts.isolation,
        network_control=facts.isolation == "bubblewrap",
        memory_limit=bool(facts.memory_limit),
        process_limit=bool(facts.process_limit),
        disk_limit=bool(facts.disk_limit),
        stateful_terminals=bool(facts.bash),
        tmux=bool(facts.tmux),
        snapshot=True,
    )
