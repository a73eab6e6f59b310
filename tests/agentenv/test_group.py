"""Groups are complete or not at all; lost members are backfilled; rows never slip against each other."""

from agentenv.group import (
    MemberContext,
    attempt_until_trainable,
    build_group,
    last_sequences,
    rollout_seed,
    to_item,
)
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.tokens.base import TokenSequence
from agentenv.types import AgentResult, ScoredDataItem


def sequence(first: int, sampled: int = 2) -> TokenSequence:
    ids = list(range(first, first + sampled))
    return TokenSequence([1, *ids], [-100, *ids], [1.0] + [-0.1 * n for n in ids])


def record(
    outcome: Outcome, reward: float | None = None, *sequences: TokenSequence, **more: object
) -> RolloutRecord:
    result = AgentResult(
        success=True,
        final_response="x",
        stop_reason=StopReason.FINAL_ANSWER,
        sequences=sequences,
        messages=({"role": "user", "content": "task"}, {"role": "assistant", "content": "x"}),
        total_tokens=sum(len(s.tokens) - 1 for s in sequences),
    )
    return RolloutRecord("t", outcome, StopReason.FINAL_ANSWER, reward, result, **more)  # type: ignore[arg-type]


GOOD = record(Outcome.SCORED, 1.0, sequence(10))


def item(*sequences: TokenSequence, reward: float = 1.0) -> ScoredDataItem:
    made = to_item(record(Outcome.SCORED, reward, *sequences), include_messages=False)
    assert made is not None
    return made


async def replay(records: list[RolloutRecord], limit: int = 3) -> tuple[RolloutRecord, list[int]]:
    left, redrawn = list(records), []

    async def attempt(number: int) -> RolloutRecord:
        redrawn.append(number)
        return left.pop(0)

    return await attempt_until_trainable(attempt, limit=limit, retry_delay_s=0.001), redrawn


async def test_an_infrastructure_failure_is_repeated_as_it_was():
    final, redrawn = await replay([record(Outcome.INFRASTRUCTURE_FAILED), GOOD])
    assert final is GOOD
    assert redrawn == [0, 0]


async def test_a_failed_verification_is_drawn_anew():
    final, redrawn = await replay(
        [record(Outcome.VERIFIER_FAILED), record(Outcome.INFRASTRUCTURE_FAILED), GOOD]
    )
    assert final is GOOD
    assert redrawn == [0, 1, 1]


async def test_a_failed_agent_with_tokens_is_kept_and_without_is_not():
    kept = record(Outcome.AGENT_FAILED, 0.0, sequence(10))
    assert (await replay([kept]))[0] is kept
    empty = record(Outcome.AGENT_FAILED, 0.0)
    assert (await replay([empty, GOOD]))[0] is GOOD


async def test_attempts_are_bounded():
    final, redrawn = await replay([record(Outcome.INFRASTRUCTURE_FAILED)] * 5, limit=3)
    assert not final.trainable
    assert len(redrawn) == 3


def test_a_seed_depends_on_group_member_and_redraw_only():
    seeds = {rollout_seed(7, g, m, r) for g in range(5) for m in range(5) for r in range(3)}
    assert len(seeds) == 75
    assert rollout_seed(7, 1, 2, 0) == rollout_seed(7, 1, 2, 0)
    assert rollout_seed(None, 1, 2, 0) is None


def test_only_trainable_records_become_items():
    for outcome in Outcome:
        made = to_item(record(outcome, 0.0, sequence(10)), include_messages=True)
        assert (made is not None) == outcome.trainable


def test_messages_end_with_the_verifiers_own_or_with_the_failure():
    scored = record(
        Outcome.SCORED,
        1.0,
        sequence(10),
        score_metadata={"verification_messages": [{"role": "user", "content": "v"}]},
    )
    made = to_item(scored, include_messages=True)
    assert made is not None
    assert made["messages"] is not None
    assert made["messages"][-1] == {"role": "user", "content": "v"}
    failed = to_item(
        record(Outcome.AGENT_FAILED, 0.0, sequence(10), cause="broke"), include_messages=True
    )
    assert failed is not None
    assert failed["messages"] is not None
    assert '"success": false' in failed["messages"][-1]["content"]


def test_a_group_has_all_fourteen_keys():
    group = build_group([item(sequence(10)), item(sequence(20), reward=0.0)])
    assert set(group) == {
        "tokens", "masks", "scores", "advantages", "ref_logprobs", "messages", "generation_params",
        "inference_logprobs", "overrides", "group_overrides", "images", "env_id", "distill_token_ids",
        "distill_logprobs",
    }  # fmt: skip
    assert group["scores"] == [1.0, 0.0]
    assert group["advantages"] == []
    assert group["group_overrides"] == {}
    assert len(group["overrides"] or []) == 2


def test_a_trajectory_of_several_sequences_gives_several_rows_in_order():
    group = build_group(
        [item(sequence(10), sequence(20), sequence(30), reward=0.5), item(sequence(40))]
    )
    assert [row[1] for row in group["tokens"]] == [10, 20, 30, 40]
    assert group["scores"] == [0.5, 0.5, 0.5, 1.0]
    assert group["group_overrides"] == {"group_size": 4}
    for tokens, masks, logprobs in zip(
        group["tokens"], group["masks"], group["inference_logprobs"] or [], strict=True
    ):
        assert len(tokens) == len(masks) == len(logprobs)


def test_a_group_that_is_packed_by_size_keeps_the_last_sequence_of_each_trajectory():
    rewritten = record(Outcome.SCORED, 0.5, sequence(10), sequence(20), sequence(30))
    plain = record(Outcome.SCORED, 1.0, sequence(40))
    members = [
        MemberContext(0, number, records=[one]) for number, one in enumerate((rewritten, plain))
    ]
    items = [to_item(one, include_messages=True) for one in (rewritten, plain)]
    group = last_sequences(build_group([one for one in items if one]), members)
    assert [row[1] for row in group["tokens"]] == [30, 40]
    assert [row[1] for row in group["masks"]] == [30, 40]
    assert group["scores"] == [0.5, 1.0]
    assert len(group["messages"] or []) == len(group["inference_logprobs"] or []) == 2
    assert group["group_overrides"] == {"sequences_left_out": 2}


def test_a_group_of_one_row_a_trajectory_stays_as_it_is():
    one = record(Outcome.SCORED, 1.0, sequence(10))
    group = build_group([item(sequence(10)), item(sequence(40))])
    assert last_sequences(group, [MemberContext(0, 0, records=[one])]) is group


def test_logprobs_are_there_for_all_rows_or_for_none():
    without = item(sequence(20))
    del without["inference_logprobs"]
    assert build_group([item(sequence(10)), without])["inference_logprobs"] is None
