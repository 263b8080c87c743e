"""Words of a text file, read one after another, which know their line when one is not what was expected."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyro_ebm._core.errors import GraphError

Value = TypeVar("Value")

_WORDS = re.compile(r"\S+")


def read_text(path: Path) -> str:
    """The text of a file; one whose name ends in `.gz` is unpacked.

    Raises:
        GraphError: if it is no text, or not packed by gzip.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return file.read()
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise GraphError(f"{path}: got a file that cannot be read ({error}), expected text, or text in gzip.") from None


class Tokens:
    """The words of a file in order.

    Args:
        path: the file, for messages.
        text: its text, without comments.
        pattern: what a word is; by default what has spaces around it.
    """

    def __init__(self, path: Path, text: str, pattern: re.Pattern[str] = _WORDS) -> None:
        self._path = path
        self._words: list[str] = []
        self._lines: list[int] = []
        for number, line in enumerate(text.splitlines(), 1):
            words = pattern.findall(line)
            self._words += words
            self._lines += [number] * len(words)
        self._next = 0

    def __len__(self) -> int:
        """How many are left."""
        return len(self._words) - self._next

    def peek(self) -> str:
        """The next word, which stays; nothing at the end of the file."""
        return self._words[self._next] if len(self) else ""

    def word(self, expected: str) -> str:
        """The next word.

        Args:
            expected: what it is, in words, for the message.

        Raises:
            GraphError: if the file is at its end.
        """
        if not len(self):
            last = self._lines[-1] if self._lines else 1
            raise GraphError(f"{self._path}, line {last}: got the end of the file, expected {expected}.")
        self._next += 1
        return self._words[self._next - 1]

    def integer(self, expected: str, low: int = 0, high: int | None = None) -> int:
        """The next word, an integer of at least `low` and at most `high`.

        Raises:
            GraphError: if it is something else.
        """
        value = self._parsed(int, expected)
        if value is None or value < low or (high is not None and value > high):
            within = f"from {low} to {high}" if high is not None else f"of at least {low}"
            raise self.error(f"{expected}, an integer {within}")
        return value

    def weight(self, expected: str) -> float:
        """The next word, a finite number that is not negative.

        Raises:
            GraphError: if it is something else.
        """
        value = self._parsed(float, expected)
        if value is None or not 0 <= value < math.inf:
            raise self.error(f"{expected}, a finite number of at least 0")
        return value

    def literal(self, *allowed: str) -> str:
        """The next word, which is one of these.

        Raises:
            GraphError: if it is something else.
        """
        named = " or ".join(f'"{each}"' for each in allowed)
        if self.word(named) not in allowed:
            raise self.error(named)
        return self._words[self._next - 1]

    def end(self, after: str) -> None:
        """Check that nothing is left.

        Raises:
            GraphError: otherwise.
        """
        if len(self):
            self._next += 1
            raise self.error(f"the end of the file after {after}")

    def error(self, expected: str) -> GraphError:
        """The error to raise where the last word read is not what was expected."""
        at = self._next - 1
        return GraphError(f'{self._path}, line {self._lines[at]}: got "{self._words[at]}", expected {expected}.')

    def _parsed(self, kind: Callable[[str], Value], expected: str) -> Value | None:
        word = self.word(expected)
        try:
            return kind(word) if "_" not in word else None  # Python reads 1_000, and nothing else does
        except ValueError:
            return None
