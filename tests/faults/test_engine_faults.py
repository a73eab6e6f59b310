"""An inference engine that fails, cuts connections and tells nonsense changes no reward and loses no group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agentenv.policy.config import APIServerConfig
from agentenv.run.progress import QuietProgress
from agentenv.testing import Fault, FaultPlan, running_engine
from tests.faults.ledger_env import END_IDS, TOKENIZER, append_by_seed, ledger_env
from tests.faults.ledger_runs import collected, trained_on
from tests.faults.sandboxes import local_pool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sandbox]
_GROUPS = 6
_RATES = {
    Fault.SERVER_ERROR: 0.08,
    Fault.UNAVAILABLE: 0.04,
    Fault.RATE_LIMITED: 0.04,
    Fault.RESET: 0.08,
    Fault.TRUNCATED: 0.04,
    Fault.HTML: 0.02,
    Fault.LOGPROBS_MISSING: 0.02,
}


async def _collect(path: Path, faults: FaultPlan) -> tuple[dict[str, Any], QuietProgress]:
    pool, _ = local_pool(16)
    progress = QuietProgress()
    async with running_engine(
        script=append_by_seed, tokenizer=TOKENIZER, end_ids=END_IDS, faults=faults
    ) as engine:
        server = APIServerConfig(
            server_type="vllm",
            base_url=engine.base_url,
            retry_base_delay=0.01,
            retry_max_delay=0.05,
            health_interval=0.05,
            max_attempts=3,
        )
        env = ledger_env(
            pool, servers=[server], group_size=4, total_steps=_GROUPS, policy_retry_limit=20
        )
        written = await collected(env, path, progress)
    return trained_on(written), progress


async def test_faults_of_the_engine_change_no_reward(tmp_path: Path):
    faults = FaultPlan(rates=_RATES, seed=3)
    sound, _ = await _collect(tmp_path / "sound", FaultPlan())
    faulty, progress = await _collect(tmp_path / "faulty", faults)
    assert set(faults.injected) == set(_RATES)
    assert set(progress.counters.outcomes) <= {"scored", "infrastructure_failed"}
    assert progress.counters.groups_dropped == 0
    assert len(sound) == _GROUPS
    assert faulty == sound
