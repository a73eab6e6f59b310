"""Names and contents for tasks, drawn by seed, and divided between training and held-out tasks."""

from __future__ import annotations

import random
from typing import Literal

from agentenv_environments.shell_tasks.words import EXTENSIONS, WORDS

Split = Literal["train", "held_out"]

_HELD_OUT_EVERY = 5


class Draw:
    """Draws names and contents for one task; none comes twice."""

    def __init__(self, split: Split, index: int) -> None:
        self._random = random.Random(f"{split}:{index}")  # noqa: S311 - tasks, not secrets
        self._held_out = split == "held_out"
        self._used: set[str] = set()

    def one_of(self, *choices: str) -> str:
        """One of the choices."""
        return self._random.choice(choices)

    def number(self, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        return self._random.randint(low, high)

    def word(self) -> str:
        """A word that this task does not use yet."""
        while (word := self._random.choice(WORDS)) in self._used:
            pass
        self._used.add(word)
        return word

    def pair(self) -> tuple[str, str]:
        """Two new words whose pair belongs to this split."""
        while True:
            first, second = self._random.sample(WORDS, 2)
            fits = is_held_out(first, second) == self._held_out
            if fits and not {first, second} & self._used:
                self._used |= {first, second}
                return first, second

    def name(self) -> str:
        """A file's name."""
        return "{}-{}.{}".format(*self.pair(), self._random.choice(EXTENSIONS))

    def folder(self) -> str:
        """A folder's name."""
        return "-".join(self.pair())

    def line(self) -> str:
        """A line of two words."""
        return " ".join(self.pair())

    def text(self, lines: int) -> str:
        """That many lines of text."""
        return "".join(f"{self.line()}\n" for _ in range(lines))

    def long_text(self, lines: int) -> str:
        """That many lines of one to four words, which may repeat."""
        drawn = (self._random.choices(WORDS, k=self._random.randint(1, 4)) for _ in range(lines))
        return "".join(f"{' '.join(words)}\n" for words in drawn)

    def shuffled(self, items: list[str]) -> list[str]:
        """The items in another order."""
        return self._random.sample(items, len(items))


def is_held_out(first: str, second: str) -> bool:
    """Whether names and lines made of this pair of words are kept for held-out tasks."""
    return (WORDS.index(first) + 2 * WORDS.index(second)) % _HELD_OUT_EVERY == 0
