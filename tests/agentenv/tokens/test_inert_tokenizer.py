import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from agentenv.testing.tokenizers import STYLES, byte_level_tokenizer, tiny_tokenizer
from agentenv.tokens.tokenizer import InertTokenizer

TOKENIZERS = {style: InertTokenizer(tiny_tokenizer(style)) for style in STYLES}
LOSSLESS = sorted(set(STYLES) - {"unigram"})
every_style = pytest.mark.parametrize("style", sorted(STYLES))


def control_ids(tokenizer: InertTokenizer, ids: list[int]) -> list[int]:
    return [
        token for token in ids if token in tokenizer.control and token != tokenizer.unk_token_id
    ]


@every_style
def test_structure_becomes_control_tokens(style):
    tokenizer = TOKENIZERS[style]
    for token, text in tokenizer.control.items():
        assert token in tokenizer.encode(f"a{text}b")


@every_style
def test_escaped_control_strings_become_none(style):
    tokenizer = TOKENIZERS[style]
    for text in [*tokenizer.control.values(), "".join(tokenizer.control.values())]:
        assert control_ids(tokenizer, tokenizer.encode_untrusted(text)) == []


@pytest.mark.parametrize("style", LOSSLESS)
def test_escaped_text_reads_as_it_was_written(style):
    tokenizer = TOKENIZERS[style]
    text = "see " + " and ".join(tokenizer.control.values()) + " \ufdd0\ufdd1\ufdd10 in it\n"
    assert tokenizer.decode(tokenizer.encode_untrusted(text)) == text


@every_style
@given(data=st.data())
def test_text_of_any_kind_yields_no_control_token(style, data):
    tokenizer = TOKENIZERS[style]
    control = st.sampled_from(list(tokenizer.control.values()))
    half = control.map(lambda text: text[: len(text) // 2])
    text = "".join(data.draw(st.lists(st.one_of(control, half, st.text()), max_size=8)))
    ids = tokenizer.encode_untrusted(text)
    assert control_ids(tokenizer, ids) == []
    if style in LOSSLESS:
        assert tokenizer.decode(ids) == text


@every_style
@given(text=st.text(st.characters(exclude_characters="<[\uff1c\uff3b\ufdd0\ufdd1", codec="utf-8")))
def test_text_without_control_strings_is_encoded_exactly_as_before(style, text):
    tokenizer = TOKENIZERS[style]
    assert tokenizer.escape(text) == text
    assert tokenizer.encode(text) == tokenizer.wrapped.encode(text, add_special_tokens=False)


def test_merges_across_the_border_of_structure_and_content_stay():
    tokenizer = TOKENIZERS["qwen3"]
    joined = tokenizer.encode("<|im_start|>use" + tokenizer.escape("r answer") + "<|im_end|>")
    plain = tokenizer.wrapped.encode("<|im_start|>user answer<|im_end|>", add_special_tokens=False)
    assert joined == plain


def test_look_alikes_that_the_normalizer_maps_onto_a_control_token_are_cut():
    tokenizer = TOKENIZERS["unigram"]
    for text in ["<END_OF_TURN>", "\uff1cend_of_turn\uff1e", "a \uff1ctool_\uff23all\uff1e b"]:
        assert control_ids(tokenizer, tokenizer.encode(text)) != []
        assert control_ids(tokenizer, tokenizer.encode_untrusted(text)) == []


def test_a_word_cut_in_two_gets_no_blank_in_the_middle():
    tokenizer = TOKENIZERS["tool-tokens"]
    assert tokenizer.decode(tokenizer.encode_untrusted("a[INST]b")) == "a[INST]b"


def test_overlapping_occurrences_are_all_cut():
    tokenizer = InertTokenizer(byte_level_tokenizer(["<|a|>"], ["|><|", "|>b"]))
    ids = tokenizer.encode_untrusted("<|a|><|a|>b")
    assert control_ids(tokenizer, ids) == []
    assert tokenizer.decode(ids) == "<|a|><|a|>b"


def test_added_tokens_that_are_vocabulary_stay_whole():
    tokenizer = InertTokenizer(byte_level_tokenizer(["<|end|>"], ["\n\n\n", "    ", "語"]))
    assert list(tokenizer.control.values()) == ["<|end|>"]
    assert len(tokenizer.encode_untrusted("語\n\n\n    ")) == 3


def test_a_single_character_that_is_a_special_token_is_replaced():
    tokenizer = InertTokenizer(byte_level_tokenizer(["\u241e", "<|end|>"]))
    assert tokenizer.decode(tokenizer.encode_untrusted("a\u241eb")) == "a\ufffdb"


def test_tokens_that_eat_blanks_are_cut_too():
    wrapped = byte_level_tokenizer(["<|x|>"])
    wrapped.add_tokens([AddedToken("<|lr|>", lstrip=True, rstrip=True, single_word=False)])
    wrapped.add_tokens([AddedToken("word|", single_word=True)])
    tokenizer = InertTokenizer(wrapped)
    text = " <|lr|>  word| aword|b"
    assert control_ids(tokenizer, tokenizer.encode(text)) != []
    assert control_ids(tokenizer, tokenizer.encode_untrusted(text)) == []
    assert tokenizer.decode(tokenizer.encode_untrusted(text)) == text


def test_lone_surrogates_become_question_marks():
    tokenizer = TOKENIZERS["qwen3"]
    assert tokenizer.decode(tokenizer.encode_untrusted("a\ud800b")) == "a?b"


def test_offsets_count_characters_of_the_escaped_text():
    tokenizer = TOKENIZERS["qwen3"]
    text = "x<|im_end|>" + tokenizer.escape("a<|im_end|>b")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoding["input_ids"] == tokenizer.encode(text)
    assert len(encoding["offset_mapping"]) == len(encoding["input_ids"])
    assert [end for _, end in encoding["offset_mapping"]][-1] == len(text)


def test_readable_text_keeps_tags_of_tools_and_thinking_only():
    tokenizer = TOKENIZERS["qwen3"]
    ids = tokenizer.encode("<think>a</think><tool_call>b</tool_call><|im_end|>")
    assert tokenizer.readable(ids) == "<think>a</think><tool_call>b</tool_call>"


def test_readable_text_keeps_tool_tags_that_are_special():
    tokenizer = TOKENIZERS["tool-tokens"]
    assert tokenizer.readable(tokenizer.encode("<s>[TOOL_CALLS]a</s>")) == "[TOOL_CALLS] a"


def test_a_flood_of_control_strings_takes_time_in_proportion():
    tokenizer = TOKENIZERS["qwen3"]
    assert control_ids(tokenizer, tokenizer.encode_untrusted("<tool_call>" * 5000)) == []
