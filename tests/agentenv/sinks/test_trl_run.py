"""TRL's own trainer learns from an environment's exact tokens.

AGENTENV_TRL_PYTHON names the interpreter of another environment that has TRL; by default it is this one. Without TRL
these tests skip; where AGENTENV_REQUIRE_TRL=1 they fail.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PYTHON = os.environ.get("AGENTENV_TRL_PYTHON", sys.executable)
ROOT = Path(__file__).parents[3]

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.torch]


def why_no_trl() -> str:
    found = subprocess.run(
        [PYTHON, "-c", "import trl"], capture_output=True, text=True, check=False
    )
    return "" if found.returncode == 0 else f"{PYTHON} cannot import trl: pip install trl"


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """What a run of `trl_run.py` printed."""
    reason = why_no_trl()
    if reason and os.environ.get("AGENTENV_REQUIRE_TRL") == "1":
        pytest.fail(f"AGENTENV_REQUIRE_TRL=1, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
    roots = [ROOT, ROOT / "backends", ROOT / "tools", ROOT / "environments"]
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("trl_run.py"))],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(str, roots)), "HF_HUB_OFFLINE": "1"}
        | {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def test_every_sampled_token_is_trained_on_and_no_token_of_a_tool(run: dict[str, Any]):
    assert [seen["trained"] for seen in run["seen"]] == run["sampled"]
    assert [seen["tool_tokens"] for seen in run["seen"]] == run["context"]
    assert min(run["context"]) > 0


def test_log_probs_sit_under_their_tokens(run: dict[str, Any]):
    """With the weights that sampled, the trainer's own log-probs give a ratio of 1 at every trained token."""
    assert max(seen["ratio_error"] for seen in run["seen"]) < 1e-3


def test_rewards_are_the_environments(run: dict[str, Any]):
    scored = [[reward for reward in batch if reward is not None] for batch in run["rewards"]]
    assert run["logged"] == pytest.approx([sum(batch) / len(batch) for batch in scored])
    assert {reward for batch in scored for reward in batch} == {0.0, 1.0}


def test_a_group_that_cannot_be_had_trains_nothing_and_stops_nothing(run: dict[str, Any]):
    assert run["holes"] == 1
    assert [reward for batch in run["rewards"] for reward in batch].count(None) == 4
    assert all(math.isfinite(loss) for loss in run["losses"])
    assert len(run["losses"]) == 2


def test_the_policy_changes_and_no_sandbox_is_left(run: dict[str, Any]):
    assert run["changed"]
    assert run["hosts_left"] == 0
