"""`evaluate` on an environment class leaves what Atropos left."""

import json
from typing import Any

import pytest
import yaml

from agentenv.cli.main import main
from agentenv.errors import RunDirectoryError
from agentenv.evaluation.atropos_log import EvaluationLog, write_evaluation
from tests.agentenv.evaluation.sweep_env import SweptEnv

HERE = "tests.agentenv.evaluation.test_atropos_log"


class Measured(SweptEnv):
    """Returns metrics and writes nothing itself."""

    async def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {"eval/right": 0.5}


class Logged(SweptEnv):
    """Writes its evaluation itself, as environments of Atropos do."""

    async def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        await self.evaluate_log(
            metrics={"eval/right": 0.25},
            task_name="own",
            start_time=10.0,
            end_time=12.5,
            generation_parameters={"temperature": 0.0},
            samples=[{"messages": [], "score": 1.0}, {"score": float("nan")}],
        )
        return {"eval/right": 0.25}


def evaluated(tmp_path: Any, name: str) -> Any:
    (tmp_path / "env.yaml").write_text(f"environment: {HERE}:{name}")
    where = str(tmp_path / "evals")
    assert (
        main(["evaluate", str(tmp_path / "env.yaml"), "--env.data_dir_to_save_evals", where]) == 0
    )
    return json.loads((tmp_path / "evals" / "metrics.json").read_text())


def test_metrics_that_are_only_returned_are_written_all_the_same(tmp_path):
    found = evaluated(tmp_path, "Measured")
    assert found["results"] == {"atropos|echo|0": {"eval/right": 0.5}, "all": {"eval/right": 0.5}}
    assert float(found["config_general"]["total_evaluation_time_seconds"]) >= 0
    assert found["config_general"]["generation_parameters"] == {"max_new_tokens": 2048}
    assert not (tmp_path / "evals" / "samples.jsonl").exists()
    config = yaml.safe_load((tmp_path / "evals" / "evaluate_config.yaml").read_text())
    assert config["env"]["data_dir_to_save_evals"] == str(tmp_path / "evals")
    assert config["openai"][0]["base_url"] == "http://unused"


def test_an_environment_that_writes_its_evaluation_itself_is_left_to_it(tmp_path):
    found = evaluated(tmp_path, "Logged")
    assert found["results"]["atropos|own|0"] == {"eval/right": 0.25}
    assert found["config_general"] == {
        "model_name": "default",
        "total_evaluation_time_seconds": "2.5",
        "generation_parameters": {"max_new_tokens": 2048, "temperature": 0.0},
    }
    lines = (tmp_path / "evals" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [1.0, "NaN"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="file"):
        write_evaluation(tmp_path / "file", EvaluationLog({"a": 1}, "t", "m"))
