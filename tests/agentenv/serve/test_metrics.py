"""Metrics by their names; Weights & Biases only when it is switched on, and never a reason to stop."""

import sys
from pathlib import Path

import pytest

from agentenv import APIServerConfig, ConfigError
from agentenv.policy.base import SamplingParams
from agentenv.policy.router import PolicyRouter
from agentenv.policy.server import EngineServer
from agentenv.serve.metrics import JsonlMetrics, Measurements, numbers_of, server_metrics
from agentenv.serve.wandb_metrics import WandbMetrics, require_wandb
from agentenv.testing import FakeEngine, running_engine
from tests.agentenv.fake_env import END, TOKENIZER

STAND_IN = """
import json, os, pathlib
TOLD = pathlib.Path(os.environ["WANDB_TEST_FILE"])

def tell(*what):
    with TOLD.open("a") as stream:
        stream.write(json.dumps(what) + "\\n")

def init(**settings):
    if settings["name"] == "broken":
        raise RuntimeError("no network")
    tell("init", settings)
    return Run()

class Run:
    def log(self, metrics, step):
        tell("log", metrics, step)

    def finish(self):
        tell("finish")
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of that name on the path; what it was told, a line each."""
    (tmp_path / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_TEST_FILE", str(tmp_path / "told"))
    return tmp_path / "told"


async def test_a_run_bears_the_trainers_group_and_project_and_every_step(told: Path):
    require_wandb()
    sink = WandbMetrics(name="echo_0", project="p", group="g", config={"group_size": 2})
    sink.log({"a": 1.0}, step=3)
    sink.log({"a": 2.0}, step=4)
    await sink.close()
    await sink.close()
    assert told.read_text().splitlines() == [
        '["init", {"name": "echo_0", "project": "p", "group": "g", "config": {"group_size": 2}}]',
        '["log", {"a": 1.0}, 3]',
        '["log", {"a": 2.0}, 4]',
        '["finish"]',
    ]


async def test_a_service_that_cannot_be_reached_ends_nothing(
    told: Path, caplog: pytest.LogCaptureFixture
):
    sink = WandbMetrics(name="broken", project=None, group=None, config={})
    sink.log({"a": 1.0}, step=1)
    await sink.close()
    assert "no network" in caplog.text
    assert not told.exists()


def test_a_missing_library_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="extra `wandb`"):
        require_wandb()


async def test_every_report_is_a_line_in_the_run_directory(tmp_path: Path):
    sink = JsonlMetrics(tmp_path)
    sink.log({"a": 1.5}, step=1)
    sink.log({"b": 2.0}, step=2)
    await sink.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 1, "a": 1.5}', '{"step": 2, "b": 2.0}']


def test_lengths_count_what_was_sampled_and_the_share_of_long_ones():
    measured = Measurements()
    measured.group_collected({"masks": [[-100, 5, 6], [-100, -100, 7]]})  # type: ignore[typeddict-item]
    measured.group_collected({"masks": [[1] * 96, [1] * 95]})  # type: ignore[typeddict-item]
    report = measured.report(max_token_len=100)
    assert report["train/completion_lengths"] == (2 + 1 + 96 + 95) / 4
    assert report["train/completion_lengths_max"] == 96
    assert report["train/completion_lengths_p95"] == 0.25
    assert "train/completion_lengths" not in measured.report(max_token_len=100)


async def test_inference_servers_have_times_of_training_and_of_evaluation():
    engine = FakeEngine(lambda request: "yes", tokenizer=TOKENIZER, end_ids=END)
    async with running_engine(engine) as running:
        config = APIServerConfig(server_type="vllm", base_url=running.base_url)
        policy = PolicyRouter([EngineServer(config)])
        await policy.start()
        for view in (policy, policy.for_evaluation()):
            await view.generate((1, 2), SamplingParams(max_tokens=4), trajectory_id="t")
        metrics = server_metrics(policy.stats())
        await policy.close()
    for split in ("", "_eval"):
        times = [metrics[f"server/server_0{split}_request_time_{k}"] for k in ("avg", "std", "99p")]
        assert times[0] > 0
        assert times[2] >= times[0] - times[1]
    assert metrics["server/server_0_average_num_attempts"] == 1.0


def test_only_finite_numbers_are_metrics():
    class Scalar:
        size = 1

        def item(self) -> float:
            return 2.5

    given = {"a": 1, "b": True, "c": float("nan"), "d": "text", "e": Scalar(), 7: 3}
    assert numbers_of(given) == {"a": 1.0, "b": 1.0, "e": 2.5, "7": 3.0}
