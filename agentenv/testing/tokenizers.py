"""Tiny tokenizers, built in memory: one for each way model families write dialogues.

    tokenizer = tiny_tokenizer("chatml")
    renderer = load_renderer(tokenizer, "template")

They are real Hugging Face tokenizers of a few hundred tokens with a chat template, so that token
handling can be tested without downloading anything.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

STYLES: dict[str, str] = {
    "qwen3": "ChatML; tags of tools and thinking are added tokens, but not special ones",
    "chatml": "ChatML with three special tokens and nothing else",
    "llama-3": "header tokens around the role; contents are trimmed",
    "strip-thinking": "thinking is opened by the generation prompt and removed from history",
    "tool-tokens": "SentencePiece-style BPE; [TOOL_CALLS]; no system role; roles must alternate",
    "unigram": "Unigram; NFKC and lower case apply to added tokens too, one of which eats blanks",
}
"""The styles and what is particular about each."""

_UNKNOWN = "<unk>"
_TAGS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
_THINK = ["<think>", "</think>"]
_CORPUS = [
    'system user assistant {"name": "terminal", "arguments": {"command": "ls -la"}} call function',
    "You may call one or more functions. The results come back within XML tags. Look, then answer.",
    '{"success": true, "output": "a.txt"} {"success": false, "error": "no such file or directory"}',
    "Here is the answer: 42. 中文 žluťoučký kůň 🙂 <tags> [brackets] </closing> | pipes | _under_",
]


def _full_width(text: str) -> str:
    """`text` with the bars and blanks of DeepSeek's tokens."""
    return text.replace("|", "\uff5c").replace("_of_", "\u2581of\u2581")


_CHATML = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_LLAMA_3 = """\
<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
_STRIP_THINKING = _full_width("""\
<|begin_of_sentence|>{% for m in messages %}\
{% if m.role == 'system' %}{{ m.content }}\
{% elif m.role == 'user' %}<|User|>{{ m.content }}\
{% else %}<|Assistant|>{{ m.content.split('</think>')[-1].lstrip() }}<|end_of_sentence|>\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|Assistant|><think>
{% endif %}""")
_TOOL_TOKENS = """\
<s>{% for m in messages %}\
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant/user/assistant') }}{% endif %}\
{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]\
{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"""
_TURNS = """\
{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""


def tiny_tokenizer(style: str = "qwen3") -> Any:
    """A fresh tokenizer of `style`, one of `STYLES`. The same style gives the same ids always."""
    builders = {
        "qwen3": _qwen3,
        "chatml": _chatml,
        "llama-3": _llama_3,
        "strip-thinking": _strip_thinking,
        "tool-tokens": _tool_tokens,
        "unigram": _unigram,
    }
    if style not in builders:
        raise ValueError(f"no tiny tokenizer {style!r}; there are: {', '.join(STYLES)}")
    return builders[style]()


def byte_level_tokenizer(special: list[str], plain: list[str] | None = None, **options: Any) -> Any:
    """A byte-level BPE tokenizer with these added tokens; `plain` ones are not flagged special.

    `options` go to `PreTrainedTokenizerFast`: `eos_token`, `chat_template`, `name_or_path`, ...
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in plain or []])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def _chatml(plain: list[str] | None = None) -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level_tokenizer(
        special, plain, eos_token=special[2], pad_token=special[0], chat_template=_CHATML
    )


def _qwen3() -> Any:
    return _chatml([*_TAGS, *_THINK])


def _llama_3() -> Any:
    names = "begin_of_text end_of_text start_header_id end_header_id eot_id eom_id python_tag"
    special = [f"<|{name}|>" for name in names.split()]
    return byte_level_tokenizer(special, eos_token=special[4], chat_template=_LLAMA_3)


def _strip_thinking() -> Any:
    names = ["begin_of_sentence", "end_of_sentence", "User", "Assistant"]
    special = [_full_width(f"<|{name}|>") for name in names]
    return byte_level_tokenizer(
        special, _THINK, eos_token=special[1], chat_template=_STRIP_THINKING
    )


def _tool_tokens() -> Any:
    """Blanks are `▁`, one is put before every text, and unknown characters become bytes."""
    bpe: dict[str, Any] = {"byte_fallback": True, "unk_token": _UNKNOWN, "fuse_unk": True}
    tokenizer = Tokenizer(models.BPE(**bpe))
    blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(blanks)
    special = [_UNKNOWN, "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"]
    trainer = BpeTrainer(vocab_size=700, show_progress=False, special_tokens=special[:3])
    tokenizer.train_from_iterator(_CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = model["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer.model = models.BPE(vocabulary, merges, **bpe)
    unblank = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [unblank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    names = {"bos_token": special[1], "eos_token": special[2], "unk_token": _UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=_TOOL_TOKENS, **names)


def _unigram() -> Any:
    special = [_UNKNOWN, "<pad>"]
    words = sorted({f"▁{word}" for line in _CORPUS for word in line.lower().split()})
    characters = sorted({*"".join(_CORPUS).lower(), *map(chr, range(33, 127)), "▁"} - {" "})
    pieces = dict.fromkeys(special, 0.0) | dict.fromkeys(words, -4.0)
    pieces |= dict.fromkeys(characters, -8.0)
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    end = "<end_of_turn>"
    turn_tokens = ["<start_of_turn>", AddedToken(end, rstrip=True, normalized=True)]
    tokenizer.add_special_tokens([*special, *turn_tokens])
    tokenizer.add_tokens([*_TAGS, *_THINK])
    names = {"eos_token": end, "unk_token": _UNKNOWN, "pad_token": special[1]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=_TURNS, **names)
