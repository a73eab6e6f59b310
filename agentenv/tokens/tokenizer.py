r"""A tokenizer in which what others wrote stays text.

    tokenizer = InertTokenizer(hf_tokenizer)
    tokenizer.encode("<|im_start|>user\n" + tokenizer.escape(untrusted) + "<|im_end|>\n")

Tokenizers find their added tokens in any text, so a file that contains `<|im_end|>` would end the
user's turn. `split_special_tokens` prevents that for tokens flagged special only, and not for
`<tool_call>` or `<think>`. So untrusted text is escaped before it is put between structure: a mark
that cannot be mistaken for text is set where a control token would have matched, and `encode`
tokenizes what lies between two marks apart. Text that holds no control token gets no mark and is
encoded exactly as it would have been.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CUT = "\ufdd0"
_QUOTE = "\ufdd1"
"""Noncharacters: Unicode reserves them for programs. `_CUT` is the mark; content gets both quoted."""
_UNWRITABLE = "\ufffd"
_TAGS_KEPT_IN_TEXT = re.compile(
    r"tool|think|reason|call|arg|func|python_tag|channel", re.IGNORECASE
)


class InertTokenizer:
    """Wraps a Hugging Face tokenizer; everything not defined here is the wrapped tokenizer's.

    `control` maps the id of each control token to its string. Control tokens are the added tokens,
    flagged special or not, except those that are vocabulary rather than structure: runs of
    whitespace, and single characters that are not flagged special.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.wrapped = tokenizer
        self._continued = _without_prefix_space(tokenizer)
        self.control = _control_tokens(tokenizer)
        self.vocab_size = max(tokenizer.get_vocab().values(), default=-1) + 1
        """One more than the highest token id."""
        strings = {text for text in self.control.values() if len(text) > 1}
        self._strings = frozenset(strings)
        self._lengths = sorted({len(text) for text in strings})
        self._starts = (
            re.compile("[" + re.escape("".join(sorted({s[0] for s in strings}))) + "]")
            if strings
            else None
        )
        self._forbidden = frozenset(self.control) - {tokenizer.unk_token_id}
        self._shown = [
            token
            for token, text in self.control.items()
            if _is_ordinary(tokenizer, token) or _TAGS_KEPT_IN_TEXT.search(text)
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def escape(self, text: str) -> str:
        """`text` in a form that `encode` turns into ordinary tokens only. Apply once, to raw text.

        Lone surrogates, which no tokenizer can encode, become `?`. A character that is a special
        token by itself becomes U+FFFD. That no control id results is checked on ids, so look-alikes
        that a tokenizer's normalizer maps onto a control token (full-width brackets, letters of
        another case) are caught too.
        """
        clean = text.encode("utf-8", "replace").decode()
        parts = self._cut_at_control_strings(clean)
        inert = [
            piece
            for index, (part, ids) in enumerate(zip(parts, self._ids_of_parts(parts), strict=True))
            for piece in self._harden(part, ids, continued=index > 0)
        ]
        return _CUT.join(_quote(piece) for piece in inert)

    def encode(self, text: str, *_: Any, **__: Any) -> list[int]:
        """Token ids of a text in which untrusted parts are escaped.

        Adds no bos or eos; the other arguments tokenizers take are ignored.
        """
        return [token for ids in self._ids_of_parts(_parts(text)) for token in ids]

    def encode_untrusted(self, text: str) -> list[int]:
        """Token ids of raw text: none of them is a control token."""
        return self.encode(self.escape(text))

    def __call__(
        self, text: str, *, return_offsets_mapping: bool = False, **_: Any
    ) -> dict[str, Any]:
        """As `encode`, in the mapping form. Offsets count characters of the escaped text."""
        if not return_offsets_mapping:
            return {"input_ids": self.encode(text)}
        if not self.wrapped.is_fast:
            raise NotImplementedError("this tokenizer gives no character offsets")
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for index, part in enumerate(text.split(_CUT)):
            encoding = self._encoder(continued=index > 0)(
                _unquote(part), add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids.extend(encoding["input_ids"])
            offsets.extend(
                (start + min(a, len(part)), start + min(b, len(part)))
                for a, b in encoding["offset_mapping"]
            )
            start += len(part) + len(_CUT)
        return {"input_ids": ids, "offset_mapping": offsets}

    def readable(self, ids: Sequence[int]) -> str:
        """The text of `ids` without control tokens, except the tags of tool calls and thinking."""
        hidden = self.control.keys() - self._shown
        return self.decode([token for token in ids if token not in hidden])

    def decode(self, ids: Any, **options: Any) -> str:
        """The text of `ids`, spaces as they are and control tokens included."""
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False, **options}
        return str(self.wrapped.decode(ids, **options)) if len(ids) else ""

    @staticmethod
    def has_marks(text: str) -> bool:
        """Whether marks of `escape` are left in `text`."""
        return _CUT in text or _QUOTE in text

    def _encoder(self, *, continued: bool) -> Any:
        return self._continued if continued else self.wrapped

    def _ids_of_parts(self, parts: list[str]) -> list[list[int]]:
        first = self.wrapped(parts[0], add_special_tokens=False, verbose=False)["input_ids"]
        if len(parts) == 1:
            return [first]
        return [
            first,
            *self._continued(parts[1:], add_special_tokens=False, verbose=False)["input_ids"],
        ]

    def _cut_at_control_strings(self, text: str) -> list[str]:
        """`text`, cut after the first character of each control string, overlapping ones too."""
        parts: list[str] = []
        done = 0
        for start in self._occurrences(text):
            parts.append(text[done : start + 1])
            done = start + 1
        return [*parts, text[done:]]

    def _occurrences(self, text: str) -> Iterator[int]:
        if self._starts is None:
            return
        for match in self._starts.finditer(text):
            start = match.start()
            if any(text[start : start + length] in self._strings for length in self._lengths):
                yield start

    def _harden(self, part: str, ids: list[int], *, continued: bool) -> list[str]:
        """`part`, whose ids are `ids`, halved again and again until no piece has a control id."""
        if self._forbidden.isdisjoint(ids):
            return [part]
        if len(part) == 1:
            return [_UNWRITABLE]
        middle = len(part) // 2
        left, right = part[:middle], part[middle:]
        left_ids = self._encoder(continued=continued).encode(left, add_special_tokens=False)
        right_ids = self._continued.encode(right, add_special_tokens=False)
        return [
            *self._harden(left, left_ids, continued=continued),
            *self._harden(right, right_ids, continued=True),
        ]


def _quote(text: str) -> str:
    return text.replace(_QUOTE, _QUOTE + "1").replace(_CUT, _QUOTE + "0")


def _unquote(text: str) -> str:
    return text.replace(_QUOTE + "0", _CUT).replace(_QUOTE + "1", _QUOTE)


def _parts(text: str) -> list[str]:
    return [_unquote(part) for part in text.split(_CUT)]


def _control_tokens(tokenizer: Any) -> dict[int, str]:
    """Id and string of each added token that is structure."""
    added = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items()}
    special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {
        token: text
        for token, text in sorted((added | special).items())
        if not _is_ordinary(tokenizer, token) or (len(text) > 1 and text.replace("▁", " ").strip())
    }


def _is_ordinary(tokenizer: Any, token: int) -> bool:
    """Whether the token is not flagged special."""
    entry = tokenizer.added_tokens_decoder.get(token)
    return token not in tokenizer.all_special_ids and not (entry is not None and entry.special)


def _without_prefix_space(tokenizer: Any) -> Any:
    """The tokenizer for text that continues other text: it puts no space before it.

    SentencePiece-style tokenizers put one before every text they are given, so that a word cut in
    two would come back with a space in the middle.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    original = json.loads(backend.to_str())
    edited = {
        key: _edit_prefix_space(value) if key in ("normalizer", "pre_tokenizer") else value
        for key, value in original.items()
    }
    if edited == original:
        return tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(edited)))


def _edit_prefix_space(step: Any) -> Any:
    """A normalizer or pre-tokenizer, as its JSON, without the part that puts a space in front."""
    if not isinstance(step, dict):
        return step
    kind = step.get("type")
    if kind == "Prepend":
        return None
    if kind == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if kind == "ByteLevel":
        return {**step, "add_prefix_space": False}
    nested = {key: step[key] for key in ("normalizers", "pretokenizers") if key in step}
    return step | {
        key: [edited for edited in map(_edit_prefix_space, steps) if edited is not None]
        for key, steps in nested.items()
    }
