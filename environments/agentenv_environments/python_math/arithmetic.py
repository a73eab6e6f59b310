"""Arithmetic made by seed: without end, and each task the same whenever it is made."""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction
from math import comb, gcd
from typing import TYPE_CHECKING, Literal
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable

Split = Literal["train", "held_out"]
_HELD_OUT_EVERY = 5


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer, as text in LaTeX or as a number written out."""

    id: str
    question: str
    answer: str


def make_question(split: Split, index: int) -> Question:
    """The question of that index. Kinds take turns; no question is in both splits."""
    dice = random.Random(f"python_math:{split}:{index}")  # noqa: S311 - questions, not secrets
    draw = KINDS[index % len(KINDS)]
    while True:
        question, answer = draw(dice)
        if (crc32(question.encode()) % _HELD_OUT_EVERY == 0) == (split == "held_out"):
            break
    return Question(f"{split}-{index}", question, answer)


def _expression(dice: random.Random) -> tuple[str, str]:
    a, b, c, d = (dice.randint(100, 9999) for _ in range(4))
    return f"What is {a} * {b} - {c} * {d}?", str(a * b - c * d)


def _remainder(dice: random.Random) -> tuple[str, str]:
    base, power, modulus = dice.randint(3, 99), dice.randint(100, 999), dice.randint(101, 9999)
    asked = f"What is the remainder when {base} to the power of {power} is divided by {modulus}?"
    return asked, str(pow(base, power, modulus))


def _digit_sum(dice: random.Random) -> tuple[str, str]:
    base, power = dice.randint(3, 29), dice.randint(20, 60)
    asked = f"What is the sum of the decimal digits of {base} to the power of {power}?"
    return asked, str(sum(map(int, str(base**power))))


def _fractions(dice: random.Random) -> tuple[str, str]:
    a, b, c = (Fraction(dice.randint(1, 60), dice.randint(7, 60)) for _ in range(3))
    result = a + b * c
    asked = f"Write ({a}) + ({b}) * ({c}) as a fraction in lowest terms, or as a whole number."
    return asked, str(result)


def _multiples(dice: random.Random) -> tuple[str, str]:
    first, second, top = dice.randint(3, 19), dice.randint(20, 40), dice.randint(1000, 9999)
    both = first * second // gcd(first, second)
    asked = f"How many whole numbers from 1 to {top} are divisible by {first} or by {second}?"
    return asked, str(top // first + top // second - top // both)


def _choices(dice: random.Random) -> tuple[str, str]:
    people = dice.randint(12, 24)
    members = dice.randint(4, people // 2)
    asked = f"In how many ways can a committee of {members} be chosen from {people} people?"
    return asked, str(comb(people, members))


KINDS: tuple[Callable[[random.Random], tuple[str, str]], ...] = (
    _expression,
    _remainder,
    _digit_sum,
    _fractions,
    _multiples,
    _choices,
)
"""Each draws a question and works its answer out."""
