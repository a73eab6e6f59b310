"""A service that stumbles at every third call, sandboxes that end under commands and a server that is switched off cost
time and nothing else.
"""

from __future__ import annotations

import asyncio
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest

from agentenv.run.progress import QuietProgress
from agentenv_backends.config import ModalConfig
from agentenv_backends.errors import SandboxTimeoutError
from agentenv_backends.modal.provider import ModalProvider
from tests.emulators.modal.running import EmulatedModal
from tests.faults.disturbing import SHARE, Disturbing
from tests.faults.ledger_env import ledger_env
from tests.faults.ledger_runs import collected, trained_on
from tests.faults.overruns import TimedPool, call_on_a_host_that_falls_silent
from tests.faults.sandboxes import local_pool
from tests.modal_service import MODAL, why_no_emulated_modal
from tests.processes import descendants

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentenv.rollout import RolloutRecord
    from agentenv_backends.base import Slot
    from agentenv_backends.pool import SlotPool
    from tests.processes import Process

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
_GROUP, _GROUPS = 8, 25
_SLOTS, _SANDBOXES = 4, 4
_SILENT_AFTER = 40
_SWITCHED_OFF_AFTER = 80


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedModal]:
    if reason := why_no_emulated_modal():
        pytest.skip(reason)
    with EmulatedModal() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


class Troublemaker(Disturbing):
    """Ends a sandbox for every twentieth rollout that ends, as at the end of its lifetime; once makes all sandboxes
    answer nothing for a while, and once switches the server off and on again.
    """

    def __init__(self, server: EmulatedModal, pool: SlotPool) -> None:
        super().__init__()
        self.sandboxes_ended = self.switched = 0
        self.silent_call: Exception | None = None
        """How a call ended whose sandbox fell silent under it."""
        self._server = server
        self._pool = pool
        self._draw = random.Random(5)
        self._one_at_a_time = asyncio.Lock()
        self.stumble()

    def stumble(self) -> None:
        self._server.fault("*", "UNAVAILABLE", probability=0.3)

    def rollout_ended(self, record: RolloutRecord) -> None:
        super().rollout_ended(record)
        if self.rollouts == _SILENT_AFTER:
            self.meanwhile(self._fall_silent())
        if self.rollouts == _SWITCHED_OFF_AFTER:
            self.meanwhile(self._switch())

    async def _switch(self) -> None:
        async with self._one_at_a_time:
            await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(self._server.start)
            self.stumble()
            self.switched += 1

    async def _fall_silent(self) -> None:
        stopped: list[Process] = []

        def stop(_: Slot) -> None:
            for pid in self._server.processes():
                stopped.extend(descendants(pid))
            for process in stopped:
                process.kill(signal.SIGSTOP)

        async with self._one_at_a_time:
            try:
                self.silent_call = await call_on_a_host_that_falls_silent(self._pool, stop)
            finally:
                for process in stopped:
                    process.kill(signal.SIGCONT)

    async def mishap(self) -> None:
        async with self._one_at_a_time:
            alive = self._server.sandboxes()
            if alive:
                victim = self._draw.choice(alive)["id"]
                self._server.tell("end", sandbox_id=victim, status="GENERIC_STATUS_TIMEOUT")
                self.sandboxes_ended += 1


async def _collect(
    path: Path, pool: SlotPool, progress: QuietProgress
) -> dict[str, dict[str, Any]]:
    env = ledger_env(
        pool,
        group_size=_GROUP,
        total_steps=_GROUPS,
        max_num_workers=_SLOTS * _SANDBOXES // _GROUP,
        policy_retry_limit=8,
    )
    return trained_on(await collected(env, path, progress))


async def test_no_trouble_of_the_service_loses_a_group_or_changes_a_reward(
    tmp_path: Path, server: EmulatedModal
):
    local, _ = local_pool(_SLOTS * _SANDBOXES)
    undisturbed = await _collect(tmp_path / "undisturbed", local, QuietProgress())
    settings = {**MODAL, "slots": _SLOTS, "max_hosts": _SANDBOXES, "launch_timeout_s": 100}
    config = ModalConfig.model_validate(settings)
    pool = TimedPool(ModalProvider(config), config.pool_settings())
    trouble = Troublemaker(server, pool)
    try:
        disturbed = await _collect(tmp_path / "disturbed", pool, trouble)
    finally:
        await trouble.finish()
    assert server.sandboxes() == []
    assert server.processes() == []
    counters = trouble.counters
    assert trouble.switched == 1
    assert trouble.sandboxes_ended >= SHARE * _GROUPS * _GROUP * 0.5
    assert counters.outcomes["infrastructure_failed"] >= 1
    assert set(counters.outcomes) == {"scored", "infrastructure_failed"}, counters.failures
    assert (counters.groups_dropped, counters.groups_retried) == (0, 0)
    assert len(undisturbed) == _GROUPS
    assert disturbed == undisturbed
    assert len({score for group in disturbed.values() for score in group["scores"]}) > 1
    assert pool.calls > _GROUPS * _GROUP * 3
    assert pool.worst_overrun_s <= 1.0
    assert isinstance(trouble.silent_call, SandboxTimeoutError)
