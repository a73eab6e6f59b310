import pytest

from agentenv.testing.tokenizers import STYLES, byte_level_tokenizer, tiny_tokenizer


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_style_gives_the_same_ids_every_time(style):
    first, second = tiny_tokenizer(style), tiny_tokenizer(style)
    assert first.get_vocab() == second.get_vocab()
    assert first.encode("Look at a.txt, please.") == second.encode("Look at a.txt, please.")


@pytest.mark.parametrize("style", sorted(STYLES))
def test_every_style_has_a_chat_template_and_an_end_token(style):
    tokenizer = tiny_tokenizer(style)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi there."}], tokenize=False)
    assert "Hi there." in text
    assert tokenizer.eos_token in tokenizer.get_added_vocab()


def test_an_unknown_style_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'qwen9'.*chatml"):
        tiny_tokenizer("qwen9")


def test_added_tokens_are_flagged_as_asked():
    tokenizer = byte_level_tokenizer(["<s>"], ["<tag>"], eos_token="<s>")
    flags = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    assert flags == {"<s>": True, "<tag>": False}
