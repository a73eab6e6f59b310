"""`NomadProvider`: hosts are allocations of one job."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from typing import TYPE_CHECKING, Any

from agentenv_backends._owner import Owner
from agentenv_backends.base import Capabilities
from agentenv_backends.connection import HostConnection
from agentenv_backends.errors import (
    BackendStoppedError,
    BackendUnavailableError,
    HostStartError,
    SlotLostError,
)
from agentenv_backends.nomad import registry
from agentenv_backends.nomad.allocations import address_of, why_not_placed
from agentenv_backends.nomad.api import NomadApi
from agentenv_backends.nomad.errors import NomadError
from agentenv_backends.nomad.job import GROUP, PREFIX, Run, host_settings, make_job
from agentenv_backends.nomad.knock import GateError, knock
from agentenv_backends.nomad.ledger import Ledger
from agentenv_backends.nomad.steward import Steward

if TYPE_CHECKING:
    from agentenv_backends.config import NomadConfig
    from agentenv_backends.host import Leftover
    from agentenv_backends.nomad.allocations import Allocation
    from agentenv_backends.sandboxd.settings import HostFacts

_log = logging.getLogger(__name__)

_GRACE_S = 5.0
"""How much later than a request's own deadline its answer is given up."""
_GOODBYE_S = 5.0
_GREETING_S = 40.0
_MAPPING_POLL_S = 0.25
_KNOCK_S = 10.0
_LEARN_S = 1.5
"""How long a host that went waits for the cluster to tell why."""
_PURGE_S = 7.0
_EARLIER = 0.85
"""Share of a deadline of the pool's after which the reason is told, which is better than the pool's own."""


class NomadHost(HostConnection):
    """A host in an allocation. When it goes unasked, its reason is what the cluster tells of the allocation."""

    def __init__(self, host_id: str, allocation: Allocation, steward: Steward) -> None:
        super().__init__(host_id, grace_s=_GRACE_S, goodbye_s=_GOODBYE_S, on_close=self._has_served)
        self.allocation = allocation
        """As it was when the host was connected to."""
        self._steward = steward
        self.is_trial = False
        """It was only looked at: another host may use the allocation."""
        self._went = False
        self._learning: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the stream has ended."""
        if self._closing is not None or self._lost_reason is not None:
            super().connection_lost(exc)
            return
        self._went = True
        self._learning = self._loop.create_task(self._tell_why(exc))

    def declare_lost(self, reason: str) -> None:
        """The cluster says that no host runs here any more."""
        self._went = True
        self._lose(reason)
        self.abort()

    async def _tell_why(self, exc: Exception | None) -> None:
        story = ""
        try:
            story = await self._steward.explain(self.allocation.allocation_id, _LEARN_S)
        finally:
            reasons = filter(None, (str(exc) if exc else "", story))
            super().connection_lost(ConnectionError("; ".join(reasons) or "no reason is known"))

    async def _has_served(self) -> None:
        if self.is_trial and not self._went:
            self._steward.give_back(self.allocation.allocation_id, silent=False)
        else:
            self._steward.spend(self.allocation.allocation_id, broken=self._went)


class NomadProvider:
    """Starts hosts in allocations. Implements `HostProvider`."""

    def __init__(self, config: NomadConfig) -> None:
        self.hosts: dict[str, NomadHost] = {}
        """Hosts that were started, also those that have ended since."""
        self.run_id = secrets.token_hex(4)
        self.job_id = config.job_id or f"{PREFIX}{self.run_id}"
        self._config = config
        self._owner = Owner.me()
        self._key = secrets.token_hex(32)
        self._api: NomadApi | None = None
        self._steward: Steward | None = None
        self._may_be_registered = False
        self._addresses: dict[str, tuple[str, int]] = {}
        """Of allocations that no host was reached in yet."""

    @property
    def calls(self) -> int:
        """Requests sent to the cluster's API so far."""
        return self._api.calls if self._api is not None else 0

    async def prepare(self) -> Capabilities:
        """See `HostProvider.prepare`. Registers the job, or takes one over, and tries a host of it."""
        if not sys.platform.startswith("linux"):
            raise BackendUnavailableError(f"the nomad backend needs Linux, this is {sys.platform}")
        api = self._connect()
        try:
            await self._check_cluster(api)
            count = await self._provide_job(api)
            ledger = Ledger(self._config.max_hosts, self._config.scale_cooldown_s)
            ledger.count = count
            self._steward = Steward(
                api, self.job_id, self._owner, self.run_id, ledger, self._on_over
            )
            self._steward.start()
            facts = await self._try_a_host(self._steward)
        except (NomadError, HostStartError) as error:
            raise BackendUnavailableError(f"the nomad backend cannot work: {error}") from error
        for sentence in facts.gives_up:
            _log.info("hosts of this configuration: %s", sentence)
        return _capabilities(facts)

    async def launch(self, host_id: str) -> NomadHost:
        """See `HostProvider.launch`. Tries one allocation after another while there is time."""
        if self._steward is None:
            raise BackendStoppedError("no host can be started before `prepare`")
        host = self.hosts[host_id] = await self._launch(host_id, self._steward)
        return host

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """See `HostProvider.sweep`. Raises `NomadError` when the cluster does not answer."""
        return await registry.sweep(self._connect(), self.run_id, remove=remove)

    async def close(self) -> None:
        """End the job, or leave it for a next run, and let go of the cluster. Idempotent, bounded.

        Raises `NomadError` when the cluster cannot be told: its hosts end by themselves then, as no driver comes.
        """
        api, self._api = self._api, None
        if api is None:
            return
        try:
            if self._steward is not None:
                await self._steward.stop()
            if self._may_be_registered:
                await self._leave(api)
        finally:
            await api.close()

    # --- the job -----------------------------------------------------------------------------------

    def _connect(self) -> NomadApi:
        if self._api is None:
            self._api = NomadApi(self._config)
        return self._api

    async def _check_cluster(self, api: NomadApi) -> None:
        leader = (await api.read("status/leader")).value
        if not leader:
            raise BackendUnavailableError(f"the cluster at {api.url} has no leader at present")

    async def _provide_job(self, api: NomadApi) -> int:
        """Register the job, or take over the one that is there. Returns its count."""
        config = self._config
        count = max(1, config.min_hosts)
        job = make_job(config, self._run, count)
        found = await registry.find_job(api, self.job_id)
        if found is not None and config.purge_job_on_start:
            await self._purge_what_is_there(api)
            found = None
        if found is not None and registry.is_live(found):
            self._key = await registry.key_to_take_over(api, found, job)
            self._may_be_registered = True
            return await self._take_over(api, found, count)
        await self._check_placement(api, job)
        index = int(found["JobModifyIndex"]) if found is not None else 0
        self._may_be_registered = True
        body = {"Job": job, "EnforceIndex": True, "JobModifyIndex": index}
        answer = await api.write("jobs", body)
        if answer.get("Warnings"):
            _log.warning("job %s: %s", self.job_id, answer["Warnings"])
        return count

    async def _take_over(self, api: NomadApi, found: dict[str, Any], count: int) -> int:
        _log.info("job %s, which an earlier run left, is taken over", self.job_id)
        there = int(found["TaskGroups"][0]["Count"])
        wanted = max(there, count)
        answer = await api.read("status/leader")
        body = registry.claim_body(self._owner, self.run_id, answer.time)
        if wanted > there:
            body["Count"] = wanted
        await api.write(f"job/{self.job_id}/scale", body)
        return wanted

    async def _purge_what_is_there(self, api: NomadApi) -> None:
        within_s = _EARLIER / 2 * self._config.launch_timeout_s
        left = await registry.purge(api, self.job_id, within_s)
        if left:
            raise BackendUnavailableError(
                f"purge_job_on_start: job {self.job_id} still runs {within_s:g} s after it was purged: "
                + "; ".join(each.story() for each in left[:3])
            )

    async def _check_placement(self, api: NomadApi, job: dict[str, Any]) -> None:
        """Have the scheduler say, before anything is started, whether it could place the hosts."""
        body = {"Job": job, "Diff": False, "PolicyOverride": False}
        plan = await api.write(f"job/{self.job_id}/plan", body)
        metric = (plan.get("FailedTGAllocs") or {}).get(GROUP)
        if metric:
            raise BackendUnavailableError(
                f"the cluster at {api.url} has no room for {job['TaskGroups'][0]['Count']} hosts like these "
                f"(min_hosts): {why_not_placed(metric)}"
            )

    async def _leave(self, api: NomadApi) -> None:
        if not self._config.purge_job_on_shutdown and self._steward is not None:
            await self._steward.disclaim_job()
            return
        self._may_be_registered = False
        left = await registry.purge(api, self.job_id, _PURGE_S)
        for each in left:
            _log.warning("job %s is purged, but so far %s", self.job_id, each.story())

    @property
    def _run(self) -> Run:
        return Run(self.job_id, self.run_id, self._owner.label(), self._key)

    # --- hosts -------------------------------------------------------------------------------------

    async def _try_a_host(self, steward: Steward) -> HostFacts:
        host = await self._launch("trial", steward, fail_early=True)
        facts = host.facts
        assert facts is not None
        host.is_trial = True
        await host.close()
        return facts

    async def _launch(
        self, host_id: str, steward: Steward, *, fail_early: bool = False
    ) -> NomadHost:
        now = asyncio.get_running_loop().time
        deadline = now() + _EARLIER * self._config.launch_timeout_s
        trouble: HostStartError | NomadError | None = None
        while True:
            try:
                allocation = await steward.claim(deadline - now(), fail_early=fail_early)
            except HostStartError as error:
                reason = f"{error}; {trouble}" if trouble else str(error)
                raise HostStartError(f"host {host_id} did not start: {reason}") from trouble
            try:
                return await self._reach(host_id, allocation, steward, deadline)
            except (HostStartError, NomadError) as error:
                if isinstance(error.__cause__, SlotLostError):
                    raise  # the server in it cannot work as asked, and neither could another
                trouble = error
                _log.debug("host %s: %s", host_id, error)

    async def _reach(
        self, host_id: str, allocation: Allocation, steward: Steward, deadline: float
    ) -> NomadHost:
        """Connect to the host in a claimed allocation. Raises `GateError`, `NomadError` or `HostStartError`."""
        allocation_id = allocation.allocation_id
        greeted = False
        try:
            address = await self._find_address(allocation)
            async with asyncio.timeout(_KNOCK_S):
                who = f"run {self.run_id}, {self._owner}"
                stream, welcome = await knock(address, self._key, allocation_id, who)
            greeted = True
            host = NomadHost(host_id, allocation, steward)
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: host, sock=stream)
            settings = host_settings(self._config, f"{self.run_id}-{host_id}", address[1], welcome)
            patience_s = min(_GREETING_S, max(1.0, deadline - loop.time()))
            try:
                await host.greet(settings, patience_s)
            except BaseException:
                host.abort()
                raise
            self._addresses.pop(allocation_id, None)
        except TimeoutError as error:
            steward.give_back(allocation_id, silent=True)
            raise GateError(f"{allocation.story()}: no answer from its gate") from error
        except BaseException:
            if greeted:
                steward.spend(allocation_id, broken=True)
            else:
                steward.give_back(allocation_id, silent=True)
            raise
        return host

    async def _find_address(self, allocation: Allocation) -> tuple[str, int]:
        """Where a host listens; its port may be mapped some time after it runs."""
        assert self._api is not None
        allocation_id = allocation.allocation_id
        if allocation_id not in self._addresses:
            address = address_of((await self._api.read(f"allocation/{allocation_id}")).value)
            if address is None:
                raise GateError(f"{allocation.story()}: its port is not mapped yet")
            self._addresses[allocation_id] = address
        return self._addresses[allocation_id]

    def _on_over(self, allocation: Allocation) -> None:
        for host in self.hosts.values():
            if host.allocation.allocation_id == allocation.allocation_id:
                host.declare_lost(allocation.story())


def _capabilities(facts: HostFacts) -> Capabilities:
    return Capabilities(
        isolation=facts.isolation,
        network_control=facts.isolation != "none",
        memory_limit=bool(facts.memory_limit) and facts.isolation != "user",
        process_limit=bool(facts.process_limit),
        disk_limit=bool(facts.disk_limit),
        stateful_terminals=bool(facts.bash),
        tmux=bool(facts.tmux),
        snapshot=True,
    )
