import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentenv.tokens.base import IGNORE_TOKEN
from agentenv.tokens.renderer import load_renderer
from agentenv_environments.shell_tasks.demonstrations import (
    Demonstration,
    demonstrate,
    demonstrations,
)
from agentenv_environments.shell_tasks.pretrain import Recipe, encode, pretrain
from agentenv_environments.shell_tasks.tasks import SEEN, Task, make_task
from agentenv_environments.shell_tasks.tokenizer import CONTROL, train_tokenizer
from agentenv_environments.shell_tasks.training import Dataset, Schedule

pytestmark = pytest.mark.torch

TINY = Recipe(
    demonstrations=40,
    vocab_size=400,
    drill_steps=2,
    bare_steps=2,
    steps=4,
    batch_size=8,
    hidden_size=16,
    intermediate_size=16,
    layers=1,
    heads=1,
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def quiet() -> Progress:
    return Progress(console=Console(file=io.StringIO()))


@pytest.mark.slow
def test_the_same_seed_makes_the_same_policy(tmp_path):
    for name in ("one", "two"):
        pretrain(TINY, tmp_path / name, quiet())

    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "one")) == 400


def test_demonstrations_are_the_same_every_time():
    def made() -> list[Demonstration]:
        return list(demonstrations(12, right_share=0.5, seed=3))

    assert made() == made()


def test_the_share_of_right_demonstrations_is_what_was_asked():
    right = {index: demonstrate(task, task.solution) for index, task in tasks(40)}

    assert list(demonstrations(40, right_share=1.0, seed=0)) == list(right.values())
    assert not any(
        made == right[index]
        for index, made in enumerate(demonstrations(40, right_share=0.0, seed=0))
    )


def tasks(count: int) -> list[tuple[int, Task]]:
    return [(index, make_task("train", index)) for index in range(count)]


def test_an_answer_repeats_what_the_last_command_printed():
    task = next(task for _, task in tasks(40) if task.solution.answer == SEEN)

    assert demonstrate(task, task.solution).answer == task.answer


def test_only_what_the_policy_writes_is_learned():
    renderer = load_renderer(train_tokenizer([], len(CONTROL)), "qwen3")
    task = next(task for _, task in tasks(40) if len(task.solution.commands) == 2)
    made = demonstrate(task, task.solution)

    tokens, labels = encode(made, renderer)

    learned = renderer.tokenizer.decode([label for label in labels if label != IGNORE_TOKEN])
    assert len(tokens) == len(labels)
    assert learned.count("<tool_call>") == 2
    assert learned.endswith(f"{made.answer}<|im_end|>")
    assert "tool_response" not in learned
    assert task.instruction not in learned


def test_a_dataset_keeps_every_row_apart_from_its_common_prefix():
    data = Dataset.of([([1, 2, 3], [-100, -100, 3]), ([1, 2, 4, 5], [-100, -100, 4, 5])])

    assert data == Dataset([1, 2], [([3], [3]), ([4, 5], [4, 5])])


def test_the_learning_rate_rises_in_the_drills_and_falls_after_them():
    schedule = Schedule(10, 20, 70, batch_size=1, learning_rate=1.0, warmup_steps=10)

    warm = [schedule.warm(step) for step in range(10)]
    after = [schedule.cosine(step) for step in range(90)]

    assert warm == sorted(warm)
    assert warm[-1] == after[0] == 1.0
    assert after == sorted(after, reverse=True)
    assert after[-1] > 0
