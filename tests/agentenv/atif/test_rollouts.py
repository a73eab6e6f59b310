import asyncio
import base64
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.atif import (
    ContentPart,
    errors,
    from_rollout,
    read_trajectory,
    rollout_images,
    to_messages,
    to_sequences,
    validate,
    write_trajectory,
)
from agentenv.atif.tokens import attach_tokens, pack_sequences, unpack_sequences
from agentenv.errors import PolicyError, TokensUnavailableError
from agentenv.harness import ToolLoop
from agentenv.hooks import NullVerifier
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutLimits, RolloutRecord, rollout
from agentenv.task import Task
from agentenv.tokens.base import Message, TokenSequence
from agentenv.types import AgentConfig, AgentStep
from agentenv_tools.schema import ToolCall, ToolResult
from tests.agentenv.atif.records import AGENT, PIXEL, record, sequence, step, two_step_record
from tests.agentenv.rollout_fakes import FunctionWorkbench, ScriptedSession, answer, calls


def test_a_rollout_becomes_a_step_for_each_message_and_each_reply():
    trajectory = from_rollout(two_step_record(), agent=AGENT)
    assert [(step.source, step.message) for step in trajectory.steps] == [
        ("system", "Be brief."),
        ("user", "Do it."),
        ("agent", "say 1"),
        ("agent", "say 2"),
    ]
    assert trajectory.steps[2].reasoning_content == "why 1"
    assert validate(trajectory.to_json(), strict=True) == []


def test_calls_and_results_are_paired_by_id():
    agent_step = from_rollout(two_step_record(), agent=AGENT).steps[2]
    assert agent_step.tool_calls is not None
    assert agent_step.observation is not None
    (call,), (result,) = agent_step.tool_calls, agent_step.observation.results
    assert (call.tool_call_id, call.function_name, call.arguments) == (
        "call_1",
        "terminal",
        {"command": "ls"},
    )
    assert (result.source_call_id, result.content) == ("call_1", "a\nb")


def test_metrics_hold_usage_and_tokens_and_are_summed():
    trajectory = from_rollout(two_step_record(), agent=AGENT)
    second = trajectory.steps[3].metrics
    assert second is not None
    assert (second.prompt_tokens, second.completion_tokens, second.cached_tokens) == (7, 1, 4)
    assert (second.prompt_token_ids, second.completion_token_ids) == ((1, 2, 3, 4, 5, 6, 7), (8,))
    assert second.logprobs == (-0.1,)
    totals = trajectory.final_metrics
    assert totals is not None
    assert (totals.total_prompt_tokens, totals.total_completion_tokens) == (10, 3)
    assert (totals.total_cached_tokens, totals.total_cost_usd, totals.total_steps) == (4, 0.25, 4)


def test_the_outcome_stands_in_the_extra():
    failed = two_step_record(
        outcome=Outcome.VERIFIER_FAILED,
        reward=None,
        cause="it hung",
        score_metadata={"rewards": {"a": 1}},
    )
    extra = from_rollout(failed, agent=AGENT).extra
    assert extra is not None
    assert extra["outcome"] == "verifier_failed"
    assert extra["cause"] == "it hung"
    assert extra["rewards"] == {"a": 1}
    assert "reward" not in extra
    assert (from_rollout(two_step_record(), agent=AGENT).extra or {})["reward"] == 0.5


def test_a_failed_and_a_malformed_call_say_so():
    good = ToolCall("terminal", {}, uniq_id="a")
    bad = ToolCall("", raw_text="<tool_call>{", uniq_id="b", error="no JSON")
    results = [
        ToolResult(False, error="exit 1", metadata={"code": 1}, uniq_id="a"),
        ToolResult(False, error="no JSON", uniq_id="b"),
    ]
    made = from_rollout(record([step(1, good, bad, results=results)]), agent=AGENT).steps[2]
    assert made.tool_calls is not None
    assert made.observation is not None
    assert made.tool_calls[1].extra == {"error": "no JSON", "raw_text": "<tool_call>{"}
    first, second = made.observation.results
    assert (first.content, first.extra) == (
        "exit 1",
        {"success": False, "error": "exit 1", "metadata": {"code": 1}},
    )
    assert second.source_call_id == "b"


def test_a_call_that_was_not_answered_in_time_has_no_result():
    late = record(
        [
            step(
                1,
                ToolCall("a", uniq_id="1"),
                ToolCall("b", uniq_id="2"),
                results=[ToolResult(True, "x")],
            )
        ]
    )
    made = from_rollout(late, agent=AGENT).steps[2]
    assert made.observation is not None
    assert [r.source_call_id for r in made.observation.results] == ["1"]


def test_images_are_files_beside_the_trajectory(tmp_path: Path):
    shown = record(
        [
            step(
                1,
                ToolCall("look", uniq_id="c"),
                results=[ToolResult(True, "a pixel", images=(PIXEL,))],
            )
        ]
    )
    file = write_trajectory(
        from_rollout(shown, agent=AGENT),
        tmp_path / "agent" / "trajectory.json",
        images=rollout_images(shown),
    )
    trajectory = read_trajectory(tmp_path)
    observation = trajectory.steps[2].observation
    assert observation is not None
    content = observation.results[0].content
    assert isinstance(content, tuple)
    text, image = content
    assert text == ContentPart(type="text", text="a pixel")
    assert image.source is not None
    assert (file.parent / image.source.path).read_bytes() == base64.b64decode(PIXEL.data)
    assert errors(validate(trajectory.to_json(), strict=True, base_dir=file.parent)) == []


def test_a_reply_that_nobody_took_apart_is_parsed():
    raw = AgentStep(1, "<think>hm</think>Yes.", (), ())
    made = from_rollout(record([raw]), agent=AGENT).steps[2]
    assert (made.reasoning_content, made.message) == ("hm", "Yes.")


def test_half_characters_and_strange_values_do_not_hinder_it():
    call = ToolCall("t\ud800", {"a": float("nan"), "b": {1, 2}, "c": object}, uniq_id="i")
    odd = record(
        [step(1, call, results=[ToolResult(True, "\udfff", metadata={"p": "\ud800"})])],
        score_metadata={"z": object()},
    )
    trajectory = from_rollout(odd, agent=AGENT)
    assert errors(validate(trajectory.to_json(), strict=True)) == []


@pytest.mark.parametrize(
    "ended",
    [
        RolloutRecord("t", Outcome.CANCELLED, StopReason.CANCELLED, None, None),
        RolloutRecord(
            "t", Outcome.INFRASTRUCTURE_FAILED, StopReason.ERROR, None, None, cause="no slot"
        ),
    ],
)
def test_a_rollout_whose_agent_never_began_leaves_one_too(ended: RolloutRecord):
    with_task = from_rollout(ended, agent=AGENT, instruction="Do it.")
    assert [(s.source, s.message) for s in with_task.steps] == [("user", "Do it.")]
    assert errors(validate(from_rollout(ended, agent=AGENT).to_json(), strict=True)) == []


async def test_a_rollout_that_the_engine_broke_off_keeps_its_conversation():
    broke = await rollout(
        Task("Count.", item=None, agent=AgentConfig(system_prompt="Be brief.")),
        harness=ToolLoop(turn_timeout_s=60),
        session=ScriptedSession(calls("look"), PolicyError("the engine died")),
        workbench=FunctionWorkbench(),
        verifier=NullVerifier(),
        limits=RolloutLimits(60, 60),
        trajectory_id="t",
    )
    trajectory = from_rollout(broke, agent=AGENT)
    assert [step.source for step in trajectory.steps] == ["system", "user", "agent"]
    last = trajectory.steps[-1]
    assert last.tool_calls is not None
    assert last.observation is not None
    assert last.observation.results[0].source_call_id == last.tool_calls[0].tool_call_id
    assert (trajectory.extra or {})["outcome"] == "infrastructure_failed"


async def test_a_rollout_under_way_is_a_trajectory_with_times():
    done = await rollout(
        Task("Count.", item=None, agent=AgentConfig()),
        harness=ToolLoop(turn_timeout_s=60),
        session=ScriptedSession(calls("look"), answer("Three.")),
        workbench=FunctionWorkbench(),
        verifier=NullVerifier(),
        limits=RolloutLimits(60, 60),
        trajectory_id="t",
    )
    trajectory = from_rollout(done, agent=AGENT)
    assert validate(trajectory.to_json(), strict=True) == []
    assert all(step.timestamp for step in trajectory.steps if step.source == "agent")
    await asyncio.sleep(0)


def test_messages_between_replies_that_are_no_results_are_steps():
    said = record(
        [step(1), step(2)],
        messages=[
            {"role": "user", "content": "Do it."},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "Go on."},
            {"role": "assistant", "content": "y"},
        ],
    )
    steps = from_rollout(said, agent=AGENT).steps
    assert [(s.source, s.message) for s in steps] == [
        ("user", "Do it."),
        ("agent", "say 1"),
        ("user", "Go on."),
        ("agent", "say 2"),
    ]


# ---- tokens


def test_the_sequences_come_back_as_the_rollout_recorded_them():
    made = two_step_record()
    assert made.result is not None
    assert to_sequences(from_rollout(made, agent=AGENT)) == list(made.result.sequences)


def test_a_reply_that_was_sampled_but_whose_step_was_cut_off_keeps_its_tokens():
    cut = record([step(1)], [sequence(([1], [2]), ([3], [4]))])
    assert cut.result is not None
    trajectory = from_rollout(cut, agent=AGENT)
    assert len([s for s in trajectory.steps if s.source == "agent"]) == 2
    assert to_sequences(trajectory) == list(cut.result.sequences)


def test_sequences_without_turns_are_taken_apart_by_their_masks():
    plain = replace(sequence(([1, 2], [3]), ([4], [5, 6])), turns=())
    rebuilt = to_sequences(from_rollout(record([step(1), step(2)], [plain]), agent=AGENT))
    assert [(s.tokens, s.masks, s.logprobs) for s in rebuilt] == [
        (plain.tokens, plain.masks, plain.logprobs)
    ]


token = st.integers(0, 9)
turn = st.tuples(st.lists(token, min_size=1, max_size=4), st.lists(token, max_size=4))


@st.composite
def trajectories(draw: st.DrawFn) -> list[TokenSequence]:
    """Sequences as dialogues leave them: each has a sampled token, replies are numbered through."""
    made: list[TokenSequence] = []
    number = 1
    for turns in draw(st.lists(st.lists(turn, min_size=1, max_size=4), max_size=4)):
        if any(completion for _, completion in turns):
            made.append(sequence(*turns, first=number))
            number += len(turns)
    return made


@given(trajectories())
def test_whatever_was_sampled_comes_back_equal(sequences: list[TokenSequence]):
    count = sum(len(entry.turns) for entry in sequences)
    made = record([step(number + 1) for number in range(count)], sequences)
    trajectory = from_rollout(made, agent=AGENT)
    assert errors(validate(trajectory.to_json(), strict=True)) == []
    assert to_sequences(trajectory) == sequences


@given(trajectories())
def test_packed_tokens_are_unpacked_and_attached_as_they_were(sequences: list[TokenSequence]):
    count = sum(len(entry.turns) for entry in sequences)
    made = record([step(number + 1) for number in range(count)], sequences)
    unpacked = unpack_sequences(pack_sequences(sequences))
    bare = from_rollout(made, agent=AGENT, tokens=False)
    assert all(s.metrics is None or s.metrics.prompt_token_ids is None for s in bare.steps)
    assert attach_tokens(bare, unpacked) == from_rollout(made, agent=AGENT)


def test_bytes_that_nobody_packed_are_refused():
    for data in (b"", b"nonsense", pack_sequences([sequence(([1], [2]))])[:-9]):
        with pytest.raises(ValueError, match="no packed sequences"):
            unpack_sequences(data)


def test_a_prompt_that_does_not_continue_the_last_begins_a_sequence():
    trajectory = from_rollout(
        record([step(1), step(2)], [sequence(([1], [2])), sequence(([9], [3]), first=2)]),
        agent=AGENT,
    )
    for entry in trajectory.steps:  # as another writer would leave it
        if entry.metrics is not None:
            entry.metrics.__dict__["extra"] = None
    assert [s.tokens for s in to_sequences(trajectory)] == [[1, 2], [9, 3]]


def test_copied_context_and_steps_without_a_model_call_are_not_trained_on():
    trajectory = from_rollout(two_step_record(), agent=AGENT)
    first, second = trajectory.steps[2:]
    copied = first.model_copy(update={"is_copied_context": True})
    uncalled = second.model_copy(update={"llm_call_count": 0})
    for steps in ((copied, second), (first, uncalled)):
        left = trajectory.model_copy(update={"steps": steps})
        assert sum(len(s.turns) for s in to_sequences(left)) == 1


def test_missing_log_probs_are_refused_or_left_out_and_never_made_up():
    trajectory = from_rollout(two_step_record(), agent=AGENT)
    metrics = trajectory.steps[3].metrics
    assert metrics is not None
    bare = trajectory.steps[3].model_copy(
        update={"metrics": metrics.model_copy(update={"logprobs": None})}
    )
    trajectory = trajectory.model_copy(update={"steps": (*trajectory.steps[:3], bare)})
    with pytest.raises(TokensUnavailableError, match="step 4 has 0 log-probs for 1"):
        to_sequences(trajectory)
    (found,) = to_sequences(trajectory, with_logprobs=False)
    assert found.tokens == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.logprobs == []


def test_a_step_with_half_of_its_ids_is_refused():
    trajectory = from_rollout(two_step_record(), agent=AGENT)
    metrics = trajectory.steps[3].metrics
    assert metrics is not None
    half = trajectory.steps[3].model_copy(
        update={"metrics": metrics.model_copy(update={"prompt_token_ids": None})}
    )
    with pytest.raises(TokensUnavailableError, match="step 4 has no prompt_token_ids"):
        to_sequences(trajectory.model_copy(update={"steps": (*trajectory.steps[:3], half)}))


def test_embedded_trajectories_are_trained_on_when_asked_for():
    inner = from_rollout(two_step_record(), agent=AGENT)
    outer = inner.model_copy(update={"subagent_trajectories": (inner,)})
    assert len(to_sequences(outer)) == 1
    assert len(to_sequences(outer, subagents=True)) == 2


def test_messages_have_calls_and_a_tool_message_for_each_result():
    messages = to_messages(from_rollout(two_step_record(), agent=AGENT))
    assert [message["role"] for message in messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert messages[2]["tool_calls"][0]["id"] == messages[3]["tool_call_id"] == "call_1"
    assert messages[3]["content"] == "a\nb"


def test_the_unfinished_conversation_of_a_record_may_hold_anything():
    odd = RolloutRecord(
        "t",
        Outcome.INFRASTRUCTURE_FAILED,
        StopReason.ERROR,
        None,
        None,
        unfinished=(
            Message("tool", "lost"),
            Message("user", "x"),
            Message("tool", "y"),
            Message("assistant", "z"),
            Message("tool", "w", tool_call_id="no"),
        ),
    )
    assert errors(validate(from_rollout(odd, agent=AGENT).to_json(), strict=True)) == []
