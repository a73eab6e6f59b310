from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentenv.errors import PolicyError, TokensUnavailableError
from agentenv.policy.base import Completion
from agentenv.tokens.base import IGNORE_TOKEN, MASKED_LOGPROB, Message, TokenSequence
from agentenv.tokens.dialogue import Dialogue
from tests.agentenv.tokens.dialogues import (
    CALL,
    SETUPS,
    TOOLS,
    Played,
    play,
    renderer,
    sampled,
    turns,
    written,
)

every_setup = pytest.mark.parametrize("setup", SETUPS)
random_dialogues = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
CALL_IDS = written("qwen3/qwen3", Message("assistant", "", tool_calls=(CALL,)))
DONE_IDS = written("qwen3/qwen3", Message("assistant", "Done."))


def started(setup: str = "qwen3/qwen3") -> Dialogue:
    dialogue = Dialogue(renderer(setup), TOOLS)
    dialogue.add(Message("system", "Be brief."), Message("user", "List the files."))
    return dialogue


def sampled_spans(sequence: TokenSequence) -> list[tuple[int, float]]:
    """Positions that are trained on, with their tokens and log-probs."""
    return [
        (sequence.tokens[i], sequence.logprobs[i])
        for i, mask in enumerate(sequence.masks)
        if mask != IGNORE_TOKEN
    ]


@every_setup
@random_dialogues
@given(data=st.data())
def test_what_is_trained_on_is_what_was_sampled(setup, data):
    played = play(setup, data.draw(turns(setup)))
    sequences = played.dialogue.sequences()
    for sequence in sequences:
        assert len(sequence.tokens) == len(sequence.masks) == len(sequence.logprobs)
        for token, mask, logprob in zip(
            sequence.tokens, sequence.masks, sequence.logprobs, strict=True
        ):
            assert (mask, logprob) == (IGNORE_TOKEN, MASKED_LOGPROB) or mask == token
    owned = [pair for sequence in sequences for pair in sampled_spans(sequence)]
    expected = [
        pair
        for _, completion in played.turns
        for pair in zip(completion.token_ids, completion.logprobs, strict=True)
    ]
    assert owned == expected


@every_setup
@random_dialogues
@given(data=st.data())
def test_each_completion_stands_behind_exactly_the_prompt_it_was_sampled_from(setup, data):
    played = play(setup, data.draw(turns(setup)))
    sequences = played.dialogue.sequences()
    for prompt, completion in played.turns:
        if completion.token_ids:
            ids = list(completion.token_ids)
            end = len(prompt) + len(ids)
            assert any(
                sequence.tokens[:end] == prompt + ids
                and sequence.masks[len(prompt) : end] == ids
                and sequence.logprobs[len(prompt) : end] == list(completion.logprobs)
                for sequence in sequences
            )


@every_setup
@random_dialogues
@given(data=st.data())
def test_text_of_others_adds_no_control_token(setup, data):
    script = data.draw(turns(setup))
    control = renderer(setup).tokenizer.control
    unknown = renderer(setup).tokenizer.unk_token_id

    def structure(played: Played) -> list[Counter[int]]:
        return [
            Counter(t for t in prompt if t in control and t != unknown)
            for prompt, _ in played.turns
        ]

    assert structure(play(setup, script)) == structure(play(setup, script, neutral=True))


@every_setup
def test_a_loop_of_tool_calls_is_as_few_sequences_as_the_family_allows(setup):
    dialogue = started(setup)
    reply_ids = written(setup, Message("assistant", "", tool_calls=(CALL,)))
    for turn in range(3):
        dialogue.prompt_ids()
        reply = dialogue.record(sampled(reply_ids, turn))
        assert [call.name for call in reply.tool_calls] == ["terminal"]
        assert reply.tool_calls[0].arguments == {"command": "ls -la"}
        dialogue.add(Message("tool", "{}", tool_call_id=reply.tool_calls[0].uniq_id))
    assert len(dialogue.sequences()) == (3 if setup == "strip-thinking/template" else 1)


def test_a_cut_tool_call_is_closed_by_context_in_the_same_sequence():
    dialogue = started()
    prompt = dialogue.prompt_ids()
    reply = dialogue.record(sampled(CALL_IDS[:-3], 0, "length"))
    assert reply.tool_calls[0].error is not None
    dialogue.add(Message("tool", "{}", tool_call_id=reply.tool_calls[0].uniq_id))
    dialogue.prompt_ids()
    dialogue.record(sampled(DONE_IDS, 1))
    (sequence,) = dialogue.sequences()
    position = len(prompt) + len(CALL_IDS) - 3
    assert sequence.tokens[position] == renderer("qwen3/qwen3").stop_token_ids[0]
    assert sequence.masks[position] == IGNORE_TOKEN


def test_thinking_that_is_stripped_from_history_begins_a_new_sequence():
    dialogue = started()
    thought = written(
        "qwen3/qwen3",
        Message("assistant", "", tool_calls=(CALL,), reasoning="It is easy."),
    )
    for turn, ids in enumerate([thought, DONE_IDS]):
        dialogue.prompt_ids()
        reply = dialogue.record(sampled(ids, turn))
        if reply.tool_calls:
            dialogue.add(Message("tool", "{}", tool_call_id=reply.tool_calls[0].uniq_id))
    dialogue.add(Message("user", "Thanks. Another thing."))
    dialogue.prompt_ids()
    dialogue.record(sampled(DONE_IDS, 2))
    first, second = dialogue.sequences()
    assert first.metadata["turns"] == 2
    assert sampled_spans(second) == list(zip(DONE_IDS, sampled(DONE_IDS, 2).logprobs, strict=True))


def test_asking_twice_gives_the_same_prompt_and_adding_a_message_another():
    dialogue = started()
    first = dialogue.prompt_ids()
    assert dialogue.prompt_ids() == first
    dialogue.add(Message("user", "All of them."))
    assert dialogue.prompt_ids() != first


def test_a_refused_completion_and_a_late_message_do_not_break_the_sequence():
    dialogue = started()
    before = [*dialogue.prompt_ids(), *CALL_IDS]
    reply = dialogue.record(sampled(CALL_IDS, 0))
    dialogue.add(Message("tool", "{}", tool_call_id=reply.tool_calls[0].uniq_id))
    prompt = dialogue.prompt_ids()
    with pytest.raises(PolicyError):
        dialogue.record(Completion((1,), (0.5,), "stop"))
    assert dialogue.prompt_ids() == prompt
    dialogue.add(Message("tool", "{}", tool_call_id="late"))
    assert dialogue.prompt_ids()[: len(before)] == before
    dialogue.record(sampled(DONE_IDS, 1))
    (sequence,) = dialogue.sequences()
    assert dialogue.total_tokens == len(sequence.tokens)
    assert dialogue.sampled_tokens == len(CALL_IDS) + len(DONE_IDS)


def test_a_prompt_without_an_answer_is_no_part_of_the_sequence():
    dialogue = started()
    dialogue.prompt_ids()
    reply = dialogue.record(sampled(CALL_IDS, 0))
    before = dialogue.sequences()
    dialogue.add(Message("tool", "{}", tool_call_id=reply.tool_calls[0].uniq_id))
    dialogue.prompt_ids()
    assert dialogue.sequences() == before


def test_calls_are_numbered_and_keep_the_id_the_policy_wrote():
    dialogue = started()
    tokenizer = renderer("qwen3/qwen3").tokenizer
    call = '<tool_call>\n{"name": "now", "arguments": {}%s}\n</tool_call>'
    texts = [call % "", call % ', "id": "mine"', call % ', "id": "mine"', call % ""]
    dialogue.prompt_ids()
    reply = dialogue.record(sampled(tokenizer.encode("\n".join(texts)), 0))
    assert [each.uniq_id for each in reply.tool_calls] == ["call_1", "mine", "call_2", "call_3"]


def test_policy_versions_are_listed_in_order_without_repeats():
    dialogue = started()
    for turn, version in enumerate(["7", "7", "8"]):
        dialogue.prompt_ids()
        ids = tuple(CALL_IDS)
        reply = dialogue.record(Completion(ids, (0.0,) * len(ids), "stop", version))
        dialogue.add(Message("tool", str(turn), tool_call_id=reply.tool_calls[0].uniq_id))
    assert dialogue.sequences()[0].policy_versions == ("7", "8")


def test_a_dialogue_without_a_sampled_token_has_no_sequence():
    dialogue = started()
    dialogue.prompt_ids()
    reply = dialogue.record(Completion((), (), "stop"))
    assert (reply.text, reply.content, reply.tool_calls) == ("", "", ())
    assert dialogue.sequences() == []


@pytest.mark.parametrize(
    ("ids", "logprobs", "error", "reason"),
    [
        ((1, 2), (-0.1,), TokensUnavailableError, "2 token ids and 1 log-probs"),
        ((1, 2), (-0.1, None), TokensUnavailableError, "position 1"),
        ((1,), (float("nan"),), PolicyError, "nan"),
        ((1,), (float("-inf"),), PolicyError, "-inf"),
        ((1,), (1.0,), PolicyError, "1.0"),
        ((-1,), (-0.1,), PolicyError, "-1"),
        ((10**6,), (-0.1,), PolicyError, "tokenizer"),
        ((1.0,), (-0.1,), PolicyError, "1.0"),
        ((True,), (-0.1,), PolicyError, "True"),
    ],
)
def test_completions_an_engine_cannot_have_sampled_are_refused(ids, logprobs, error, reason):
    dialogue = started()
    dialogue.prompt_ids()
    with pytest.raises(error, match=reason):
        dialogue.record(Completion(ids, logprobs, "stop"))
    assert dialogue.sequences() == []


def test_log_probs_may_exceed_zero_by_a_rounding_error():
    dialogue = started()
    dialogue.prompt_ids()
    dialogue.record(Completion((1,), (1e-7,), "length"))
    assert dialogue.sequences()[0].logprobs[-1] == 1e-7


def test_misuse_says_what_to_do():
    dialogue = Dialogue(renderer("qwen3/qwen3"), TOOLS)
    with pytest.raises(ValueError, match="add a message"):
        dialogue.prompt_ids()
    dialogue.add(Message("user", "Hi."))
    with pytest.raises(ValueError, match="call prompt_ids"):
        dialogue.record(sampled(DONE_IDS, 0))
    dialogue.prompt_ids()
    dialogue.record(sampled(DONE_IDS, 0))
    with pytest.raises(ValueError, match="add a message"):
        dialogue.prompt_ids()


def test_an_empty_reply_leaves_no_context_at_the_end_and_the_sequence_goes_on():
    dialogue = started()
    for turn, ids in enumerate([CALL_IDS, [], CALL_IDS]):
        dialogue.prompt_ids()
        dialogue.record(sampled(ids, turn))
        assert dialogue.sequences()[-1].masks[-1] == CALL_IDS[-1]
        dialogue.add(Message("tool", "{}", tool_call_id=str(turn)))
    (sequence,) = dialogue.sequences()
    assert len(sampled_spans(sequence)) == 2 * len(CALL_IDS)
