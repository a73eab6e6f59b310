r"""Which part of a reply is its answer, and answers that are plain numbers.

The rule: of the last 65,536 characters, the contents of the last `\boxed{...}`, or, where there is no box, what
follows `Answer:` on the last line that begins so. Boxes in boxes are unwrapped. A last box that is never closed, and an
answer of more than 1,000 characters, are no answer: nothing earlier is taken instead.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_REPLY_CHARS = 65_536
MAX_ANSWER_CHARS = 1_000
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LINE = re.compile(r"^[ \t*_#>]*answer[ \t*_]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_AROUND = " \t\r\n*_$"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PLAIN = re.compile(r"([+-]?)(\d+(?:,\d{3})*|\d*)(\.\d+)?")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}|([+-]?\d+)/(\d+)")
_UNEVALUATED = re.compile(
    r"[+*^!]|\\(?:times|cdot|div|pm|sqrt|binom|sum|prod|log|ln)\b|[\d)]\s*-|\)\s*\(|\d\s*\("
)


def answer_in(reply: str) -> str | None:
    """The answer in a reply, by the rule above; None when there is none. Takes time linear in what is read."""
    text = reply[-MAX_REPLY_CHARS:]
    boxes = _outer_boxes(text)
    if boxes:
        start, end = boxes[-1]
        found = None if end is None else text[start:end]
    else:
        lines = _LINE.findall(text)
        found = lines[-1] if lines else None
    if found is None or len(found) > MAX_ANSWER_CHARS:
        return None
    return _unwrapped(found) or None


def number_in(answer: str) -> Fraction | None:
    r"""The value of an answer that is a number written out: `-1,234.5`, `3/4`, `\frac{3}{4}`; None for others."""
    text = answer.replace("−", "-").replace(" ", "")  # noqa: RUF001 - the sign that typesetting makes
    if (ratio := _FRACTION.fullmatch(text)) is not None:
        sign, over, under, plain_over, plain_under = ratio.groups()
        below = int(under or plain_under)
        above = int(plain_over) if plain_over else int(f"{sign}{over}")
        return Fraction(above, below) if below else None
    plain = _PLAIN.fullmatch(text)
    if plain is None or not (plain[2] or plain[3]):
        return None
    return Fraction(f"{plain[1]}{plain[2].replace(',', '') or '0'}{plain[3] or ''}")


def is_unevaluated(answer: str) -> bool:
    """Whether an answer still holds an operation, such as `12*7` for 84: repeating the question solves nothing."""
    return _UNEVALUATED.search(answer.replace("−", "-").lstrip("+- $")) is not None  # noqa: RUF001


def _outer_boxes(text: str) -> list[tuple[int, int | None]]:
    """Where the contents of each box begin and end that lies in no other one. One that is never closed is the last."""
    boxes: list[tuple[int, int | None]] = []
    at = 0
    while (found := _BOX.search(text, at)) is not None:
        end = _closing(text, found.end())
        boxes.append((found.end(), end))
        if end is None:
            break
        at = end
    return boxes


def _closing(text: str, start: int) -> int | None:
    """The index of the brace that closes what was opened before `start`."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def _unwrapped(found: str) -> str:
    """Without what surrounds an answer: boxes, dollar signs, emphasis, a full stop."""
    text = found
    while True:
        text = text.strip(_AROUND).removesuffix(".").strip(_AROUND)
        inner = _BOX.match(text)
        if inner is None or _closing(text, inner.end()) != len(text) - 1:
            return text
        text = text[inner.end() : -1]
