"""What TRL's trainer is given, and what is refused before anything is sampled. No TRL is needed for it."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from agentenv.errors import ConfigError, NotStartedError, SinkError  # noqa: E402
from agentenv.sinks import trl  # noqa: E402
from agentenv.sinks.trl import TrainerPolicy, TrlRollouts  # noqa: E402
from tests.agentenv.fake_env import TOKENIZER, EchoEnv, make_env  # noqa: E402

pytestmark = pytest.mark.torch


def trainer(**more: Any) -> SimpleNamespace:
    """What `TrlRollouts` looks at of a trainer."""
    accelerator = SimpleNamespace(num_processes=1, unwrap_model=lambda model: model)
    given = {
        "accelerator": accelerator, "model": torch.nn.Linear(1, 1).train(), "temperature": 0.7, "use_vllm": False,
        "tools": [], "environment_factories": None, "state": SimpleNamespace(global_step=3),
    }  # fmt: skip
    return SimpleNamespace(**(given | more))


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "version", lambda name: "1.16.0")


@pytest.fixture
def rollouts() -> Iterator[TrlRollouts]:
    with started(make_env()) as made:
        yield made


def started(env: EchoEnv, **more: Any) -> TrlRollouts:
    """Rollouts of a fake environment that keeps its fake policy."""
    policy = env.runtime.policy
    made = TrlRollouts(env, **more)
    env.runtime.policy = policy
    return made


def prompts(rollouts: TrlRollouts, items: int) -> list[str]:
    return rollouts._loop.run(rollouts._fetch(items))


def test_every_prompt_gets_a_row_of_its_own_group_in_whatever_order(rollouts: TrlRollouts):
    first, second = prompts(rollouts, 2)
    asked = [first, second, second, first]
    rows = rollouts(asked, trainer())
    assert {len(values) for values in rows.values()} == {4}
    lengths = [len(ids) for ids in rows["prompt_ids"]]
    texts = [rollouts.env.build_task(item) for item in (0, 1)]
    assert texts[0] in first
    assert rows["prompt_ids"][0] == rows["prompt_ids"][3] != rows["prompt_ids"][1]
    assert rows["prompt_ids"][1] == rows["prompt_ids"][2]
    assert min(lengths) > 0
    for ids, logprobs, mask in zip(
        rows["completion_ids"], rows["logprobs"], rows["env_mask"], strict=True
    ):
        assert len(ids) == len(logprobs) == len(mask)
        assert set(mask) == {0, 1}
        assert all(value == 0.0 for value, mine in zip(logprobs, mask, strict=True) if not mine)
    assert (
        rollouts.reward(prompts=asked, agentenv_reward=rows["agentenv_reward"])
        == rows["agentenv_reward"]
    )


def test_each_reward_stands_at_its_own_completion(rollouts: TrlRollouts):
    asked = [prompt for prompt in prompts(rollouts, 8) for _ in range(2)]
    rows = rollouts(asked, trainer())
    answers = [TOKENIZER.decode(ids) for ids in rows["completion_ids"]]
    solved = [float(answer.endswith("right<|im_end|>")) for answer in answers]
    assert rows["agentenv_reward"] == solved
    assert set(solved) == {0.0, 1.0}


def test_prompts_are_one_line_per_item_and_unlike_each_other(rollouts: TrlRollouts):
    assert prompts(rollouts, 2) == ["0: task 0", "1: task 1"]
    assert prompts(rollouts, 1) == ["2: task 2"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"use_vllm": True}, "use_vllm"),
        ({"tools": [len]}, "tools"),
        ({"environment_factories": {None: object}}, "environment_factory"),
        ({"temperature": 1.0}, "agent_temperature"),
        ({"accelerator": SimpleNamespace(num_processes=2)}, "one process"),
    ],
)
def test_a_trainer_that_would_train_on_something_else_is_refused(
    rollouts: TrlRollouts, more: dict[str, Any], reason: str
):
    (prompt,) = prompts(rollouts, 1)
    with pytest.raises(ConfigError, match=reason):
        rollouts([prompt, prompt], trainer(**more))


def test_a_group_size_that_is_not_the_trainers_is_refused(rollouts: TrlRollouts):
    (prompt,) = prompts(rollouts, 1)
    with pytest.raises(ConfigError, match="num_generations"):
        rollouts([prompt] * 3, trainer())


def test_a_foreign_prompt_is_refused(rollouts: TrlRollouts):
    with pytest.raises(ConfigError, match="not of this rollouts"):
        rollouts(["0: task 0"] * 2, trainer())


@pytest.mark.parametrize("found", ["0.29.1", "1.15.3", "2.0.0", "none"])
def test_a_version_that_was_not_tried_is_refused(
    rollouts: TrlRollouts, found: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trl, "version", lambda name: found)
    with pytest.raises(ConfigError, match=r"trl .*env_mask"):
        rollouts([], trainer())


class Loses(EchoEnv):
    """Its even items never become groups."""

    async def collect_trajectories(self, item: Any) -> Any:
        return await super().collect_trajectories(item) if item % 2 else (None, [item])


def test_a_group_that_cannot_be_had_leaves_rows_that_train_nothing():
    with started(make_env(env_cls=Loses), attempts=2) as rollouts:
        even, odd = prompts(rollouts, 2)
        rows = rollouts([even, even, odd, odd], trainer())
    assert rollouts.holes == 1
    assert rows["agentenv_reward"][:2] == [None, None]
    assert rows["env_mask"][:2] == [[0], [0]]
    assert None not in rows["agentenv_reward"][2:]


def test_when_no_group_can_be_had_training_stops_with_the_reason():
    with started(make_env(env_cls=Loses), attempts=1) as rollouts:
        (even,) = prompts(rollouts, 1)
        with pytest.raises(SinkError, match="none of 1 groups"):
            rollouts([even, even], trainer())


def test_the_model_is_in_training_mode_again_even_when_rollouts_fail():
    class Broken(EchoEnv):
        async def collect_trajectories(self, item: Any) -> Any:
            raise ValueError("broken")

    given = trainer()
    with started(make_env(env_cls=Broken)) as rollouts:
        (prompt,) = prompts(rollouts, 1)
        with pytest.raises(ValueError, match="broken"):
            rollouts([prompt, prompt], given)
    assert given.model.training


async def test_a_model_is_lent_only_inside_its_block():
    policy = TrainerPolicy()
    with pytest.raises(NotStartedError, match="lent"):
        await policy.generate([1], None, trajectory_id="t")  # type: ignore[arg-type]
    model = torch.nn.Linear(1, 1)
    async with policy.lent(model, "3"):
        assert not model.training
    with pytest.raises(NotStartedError, match="lent"):
        await policy.chat([], None, trajectory_id="t")  # type: ignore[arg-type]


def test_an_environment_that_cannot_start_leaves_no_thread():
    class Broken(EchoEnv):
        async def setup_agent_env(self) -> None:
            raise ValueError("no data")

    rollouts = started(make_env(env_cls=Broken))
    with pytest.raises(ValueError, match="no data"):
        rollouts.__enter__()
    assert rollouts._loop._loop is None
