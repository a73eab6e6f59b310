from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from agentenv.training.checkpoints import CheckpointStore  # noqa: E402
from agentenv.training.learner import Learner  # noqa: E402
from agentenv.training.rows import TrainingDataError, group_rows  # noqa: E402
from agentenv.training.trainer import (  # noqa: E402
    BatchLostError,
    LoopSettings,
    NoBatchError,
    StepReport,
    Trainer,
)
from tests.agentenv.training.groups import item, tiny_model, two_rows  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch
torch.set_num_threads(1)


@dataclass(frozen=True)
class Handed:
    batch_id: int | None
    groups: list[Any]
    step: int | None = None


@dataclass
class LeasingServer:
    """Hands out the same batch until it is acknowledged, as the trajectory server does."""

    batches: list[Handed]
    log: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    """Batches that are another trainer's when they are to be acknowledged."""

    async def batch(self) -> Handed | None:
        if self.failures:
            raise self.failures.pop()
        if not self.batches:
            return None
        batch = self.batches[0] if self.batches[0].batch_id else self.batches.pop(0)
        self.log.append(f"batch {batch.batch_id}")
        return batch

    async def acknowledge(self, batch_id: int) -> None:
        assert self.batches[0].batch_id == batch_id
        self.batches.pop(0)
        if batch_id in self.lost:
            raise BatchLostError(f"batch {batch_id} is lost: it went to another")
        self.log.append(f"acknowledge {batch_id}")

    async def register(self) -> int | None:
        self.log.append("register")
        return None


def batches(count: int, *, first: int = 1) -> list[Handed]:
    """Batches that pull different ways."""
    return [
        Handed(number, [two_rows(scores=[1.0, 0.1 * number])])
        for number in range(first, first + count)
    ]


@dataclass
class Run:
    """A trainer with everything it needs, and what it did."""

    folder: Path
    server: LeasingServer
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    retry_on: tuple[type[Exception], ...] = ()
    reports: list[StepReport] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Share of the learning rate that was in force when weights were published."""

    def __post_init__(self) -> None:
        self.learner = Learner(tiny_model())
        store = CheckpointStore(self.folder / "checkpoints", model_path=self.folder)
        self.trainer = Trainer(
            self.server,
            self.learner,
            LoopSettings(
                **{"steps": self.steps, "poll_s": 0.001, "max_wait_s": 5.0} | self.settings
            ),
            publish=self._publish,
            checkpoints=store,
            retry_on=self.retry_on,
            on_step=self.reports.append,
            register=self.server.register,
        )
        self.store = store

    async def _publish(self, weights: Any, version: str) -> None:
        assert set(weights) == set(self.learner.model.state_dict())
        self.published.append(version)
        rate = self.learner.optimizer.param_groups[0]["lr"]
        self.rates.append(rate / self.learner.settings.learning_rate)
        self.server.log.append(f"publish {version}")

    async def train(self) -> None:
        await self.trainer.restore()
        await self.trainer.run()

    def weights(self) -> Any:
        return torch.cat([value.flatten() for value in self.learner.weights().values()])


async def test_a_batch_that_is_lost_ends_nothing_and_the_trainer_registers_anew(tmp_path):
    run = Run(tmp_path, LeasingServer(batches(2), lost={1}), steps=2)

    await run.train()

    assert run.server.log == [
        *("publish 0", "batch 1", "publish 1", "register"),
        *("batch 2", "publish 2", "acknowledge 2"),
    ]


async def test_a_batch_is_acknowledged_after_its_weights_are_out_and_in_a_checkpoint(tmp_path):
    run = Run(tmp_path, LeasingServer(batches(2)), steps=2)

    await run.train()

    assert run.server.log == [
        *("publish 0", "batch 1", "publish 1", "acknowledge 1"),
        *("batch 2", "publish 2", "acknowledge 2"),
    ]
    latest = run.store.latest()
    assert latest is not None
    assert (latest.step, latest.batch_id) == (2, 2)
    assert [report.step for report in run.reports] == [1, 2]
    assert run.reports[0].mean_score == pytest.approx(0.55)


async def test_a_trainer_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(tmp_path):
    whole = Run(tmp_path / "whole", LeasingServer(batches(4)), steps=4)
    await whole.train()

    first = Run(
        tmp_path / "parts", LeasingServer(batches(2)), steps=4, settings={"max_wait_s": 0.2}
    )
    with pytest.raises(NoBatchError):
        await first.train()
    second = Run(tmp_path / "parts", LeasingServer(batches(2, first=3)), steps=4)
    await second.train()

    assert second.published == ["2", "3", "4"]
    assert torch.equal(second.weights(), whole.weights())


async def test_weights_are_named_by_the_servers_step_where_batches_were_lost(tmp_path):
    run = Run(tmp_path, LeasingServer([Handed(7, [two_rows()], step=79)]), steps=1)

    await run.trainer.restore()
    await run.trainer.catch_up(1)
    assert run.published == ["0"]
    await run.trainer.catch_up(80)
    await run.trainer.run()

    assert run.published == ["0", "80", "80"]
    assert [report.step for report in run.reports] == [1]


async def test_a_batch_that_is_in_the_checkpoint_is_acknowledged_and_not_learned_from_again(
    tmp_path,
):
    class DiesBeforeAcknowledging(LeasingServer):
        async def acknowledge(self, batch_id: int) -> None:
            raise KeyboardInterrupt

    first = Run(tmp_path, DiesBeforeAcknowledging(batches(1)), steps=2)
    with pytest.raises(KeyboardInterrupt):
        await first.train()

    second = Run(tmp_path, LeasingServer(batches(2)), steps=2)
    await second.train()

    assert second.server.log == [
        *("publish 1", "batch 1", "acknowledge 1", "batch 2", "publish 2", "acknowledge 2"),
    ]
    assert [report.step for report in second.reports] == [2]


async def test_a_server_that_knows_no_acknowledgement_is_asked_for_none(tmp_path):
    server = LeasingServer([Handed(None, [two_rows()]), Handed(None, [two_rows()])])
    run = Run(tmp_path, server, steps=2)

    await run.train()

    assert not [line for line in server.log if line.startswith("acknowledge")]
    assert run.trainer.step == 2


async def test_a_group_that_cannot_be_trained_on_is_counted_and_the_rest_is_learned(tmp_path):
    bad = two_rows(inference_logprobs=None)
    run = Run(tmp_path, LeasingServer([Handed(1, [bad, two_rows()])]), steps=1)

    await run.train()

    assert (run.reports[0].groups, run.reports[0].refused_groups) == (2, 1)
    assert run.reports[0].stats.rows == 2


async def test_a_batch_of_nothing_but_refused_groups_ends_training_with_the_reason(tmp_path):
    bad = two_rows(inference_logprobs=None)
    run = Run(tmp_path, LeasingServer([Handed(1, [bad])]), steps=1)

    with pytest.raises(TrainingDataError, match="no inference_logprobs"):
        await run.train()


async def test_a_batch_of_equal_scores_changes_nothing_and_counts_as_a_step(tmp_path):
    run = Run(tmp_path, LeasingServer([Handed(1, [two_rows(scores=[1.0, 1.0])])]), steps=1)
    before = run.weights()

    await run.train()

    assert torch.equal(run.weights(), before)
    assert run.reports[0].stats.trained_tokens == 0


async def test_the_learning_rate_falls_along_a_line_to_what_is_asked_for(tmp_path):
    run = Run(tmp_path, LeasingServer(batches(3)), steps=3, settings={"final_rate": 0.5})
    await run.train()

    _, *rates = run.rates
    assert rates == pytest.approx([1.0, 0.75, 0.5])


async def test_the_learning_rate_rises_along_a_line_before_it_falls(tmp_path):
    settings = {"final_rate": 0.0, "warmup_steps": 2}
    run = Run(tmp_path, LeasingServer(batches(5)), steps=5, settings=settings)
    await run.train()

    _, *rates = run.rates
    assert rates == pytest.approx([0.5 * 1.0, 0.75, 0.5, 0.25, 0.0])


async def test_rows_without_an_advantage_count_in_the_average_of_a_step():
    rows, idle = group_rows(two_rows()), group_rows(two_rows(scores=[1.0, 1.0]))

    alone = Learner(tiny_model()).learn(rows)
    diluted = Learner(tiny_model()).learn([*rows, *idle])

    assert (diluted.rows, diluted.trained_tokens) == (alone.rows, alone.trained_tokens)
    assert diluted.grad_norm == pytest.approx(alone.grad_norm / 2)


async def test_an_outage_of_the_server_is_waited_out(tmp_path):
    server = LeasingServer(batches(1), failures=[ConnectionError("away"), ConnectionError("away")])
    run = Run(tmp_path, server, steps=1, retry_on=(ConnectionError,))

    await run.train()

    assert run.trainer.step == 1


async def test_waiting_for_a_batch_has_an_end_which_says_what_to_look_at(tmp_path):
    run = Run(tmp_path, LeasingServer([]), steps=1, settings={"max_wait_s": 0.05})

    with pytest.raises(NoBatchError, match="does an environment run"):
        await run.train()


async def test_the_report_names_the_oldest_weights_of_the_batch(tmp_path):
    groups = [two_rows(policy_version=3), two_rows(policy_version=None), two_rows(policy_version=2)]
    run = Run(tmp_path, LeasingServer([Handed(1, groups)]), steps=1)

    await run.train()

    assert run.reports[0].oldest_version == 2


async def test_log_ratios_are_zero_under_the_weights_that_sampled_and_grow_with_a_step():
    model = tiny_model()
    with torch.no_grad():
        exact = torch.log_softmax(model(torch.tensor([[1, 2, 3, 4]])).logits[0], -1)
    given = [float(exact[at, at + 2]) for at in range(3)]
    group = two_rows()
    for row, score in enumerate((1.0, 0.0)):
        made = item([1, 2, 3, 4], [1, 2, 3], given, score)
        group["tokens"][row], group["masks"][row] = made["tokens"], made["masks"]
        assert group["inference_logprobs"] is not None
        group["inference_logprobs"][row] = made["inference_logprobs"]
    rows = group_rows(group)
    learner = Learner(model)

    assert learner.compare(rows).max_abs_log_ratio < 1e-5
    learner.learn(group_rows({**group, "advantages": [[1.0] * 4, [1.0] * 4]}))
    assert learner.compare(rows).max_abs_log_ratio > 1e-3
