"""What a sweep's configuration means, and what it refuses."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from agentenv.evaluation.spec import Arm, Price, SampleKey, SweepConfig, changes, stored_form
from agentenv.yaml_file import read_yaml
from tests.agentenv.evaluation.sweeps import config

ARM = Arm("tasks", "model", "default")


def test_a_sample_is_named_by_its_key_and_by_nothing_else():
    key = SampleKey(ARM, "t", 0, 1)
    assert key.id == SampleKey(Arm("tasks", "model", "default"), "t", 0, 1).id
    others = [
        SampleKey(Arm("tasks", "other", "default"), "t", 0, 1),
        SampleKey(ARM, "u", 0, 1),
        SampleKey(ARM, "t", None, 1),
        SampleKey(ARM, "t", 0, 2),
        SampleKey(Arm("tasks", "modeld", "efault"), "t", 0, 1),
    ]
    assert len({key.id, *(other.id for other in others)}) == 6
    assert key.id == "76bbabbcce5160237586d576", "ids of stored sweeps must stay"


def test_random_numbers_depend_on_seed_task_and_attempt_alone():
    key = SampleKey(ARM, "t", 0, 1)
    assert key.rollout_seed == SampleKey(Arm("tasks", "other", "cold"), "t", 0, 1).rollout_seed
    assert key.rollout_seed != SampleKey(ARM, "t", 0, 2).rollout_seed
    assert key.rollout_seed != SampleKey(ARM, "t", 1, 1).rollout_seed
    assert SampleKey(ARM, "t", None, 1).rollout_seed is None


def test_every_arm_and_draw_is_planned():
    made = config(settings={"x": {}, "y": {}}, seeds=[0, None])
    assert len(list(made.arms())) == 4
    assert list(made.draws()) == [(0, 1), (None, 1), (0, 2), (None, 2)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": {"a@b": {"environment": "x"}}}, "String should match pattern"),
        ({"tasks": {"a": {}}}, "give either `environment` or `directory`"),
        ({"tasks": {"a": {"environment": "x", "directory": "y"}}}, "give either"),
        ({"tasks": {"a": {"directory": "y", "env": {"z": 1}}}}, "`env` is for an environment"),
        ({"models": {"a": {"chat": "gpt", "agent": "nop"}}}, "give one of chat, agent"),
        ({"models": {"a": {"chat_settings": {"timeout_s": 1}}}}, "those of `chat`"),
        ({"models": {"a": {"price": {"input": -1}}}}, "greater than or equal to 0"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"attempts": 0}, "greater than or equal to 1"),
        ({"attemps": 3}, "Extra inputs are not permitted"),
        ({"budget": {"cost_usd": 1.0}}, "budget.cost_usd needs a `price` for a, b"),
        ({"budget": {"wall_s": float("nan")}}, "finite number|greater than 0"),
        ({"retry": {"attempts": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_work_is_refused(wrong, said):
    with pytest.raises(ValidationError, match=said):
        config(**wrong)


def test_costs_are_of_fresh_cached_and_written_tokens():
    price = Price(input=2.0, cached_input=0.5, output=10.0)
    cost = price.cost(input_tokens=1_000, cached_tokens=400, output_tokens=100)
    assert cost == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 10) / 1e6)
    assert Price(input=2.0).cost(
        input_tokens=1_000, cached_tokens=400, output_tokens=9
    ) == pytest.approx(2e-3)


def test_a_sweep_that_only_grew_is_the_same_sweep():
    assert (
        changes(stored_form(config()), config(attempts=9, models={"a": {}, "b": {}, "c": {}})) == []
    )
    everything = {"tasks": {"numbers": {"environment": "none"}}}
    assert changes(stored_form(config()), config(**everything)) == [], (
        "all tasks are more than five"
    )
    assert changes(stored_form(config(**everything)), config()) != []


def test_the_shipped_sweep_is_a_sweep():
    made = read_yaml(Path(__file__).parents[3] / "configs/sweep.yaml", SweepConfig)
    assert [arm.settings for arm in made.arms()] == ["sampled", "greedy"]


def test_secrets_are_not_stored():
    models = {
        "a": {"openai": {"api_key": "canary"}},
        "b": {"chat": "x", "chat_settings": {"api_key": "canary"}},
    }
    assert "canary" not in str(stored_form(SweepConfig.model_validate(config(models=models))))
