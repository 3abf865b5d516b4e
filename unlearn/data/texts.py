"""Texts as rows: a text is cut into pieces, each a prompt to be continued.

Answers follow one another without a gap, each with the words right before it as its prompt: every word of a text but
its first ones is in exactly one answer. White space is kept inside prompt and answer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from unlearn.config.setting import at_least, setting
from unlearn.data.rows import Row, as_read, pair


@dataclass
class WordsConfig:
    """How a text is cut: every word after the first ``prompt`` ones is in one answer, whose prompt are those before."""

    prompt: int = setting(32, at_least(1))  # words; of a text that has fewer than twice as many, half of them
    answer: int = setting(64, at_least(1))  # words, at most


def pieces(text: str, words: WordsConfig) -> list[tuple[str, str]]:
    """(prompt, answer) pairs of a text, in its order; answers differ by at most one word in length. A text of fewer
    than ``2 · words.prompt`` words begins with half of them; of fewer than two words there are none."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    first = min(words.prompt, len(spans) // 2)
    if first == 0:
        return []
    rest = len(spans) - first
    count = -(-rest // words.answer)
    starts = [first + rest * k // count for k in range(count + 1)]
    return [
        (text[spans[max(0, a - words.prompt)][0] : spans[a - 1][1]], text[spans[a][0] : spans[b - 1][1]])
        for a, b in zip(starts, starts[1:], strict=False)
    ]


def rows(text: str, id: str, words: WordsConfig, place: str) -> list[Row]:
    """A text's pieces as rows ``ID.0``, ``ID.1``, …, all of one group."""
    return [Row(f"{id}.{k}", *piece, place=place, group=id) for k, piece in enumerate(pieces(text, words))]


def distinct(found: Iterable[Row]) -> list[Row]:
    """Rows without repetition: the first of each. Texts share passages, and one that is cut alike counts once."""
    first: dict[tuple[str, str], Row] = {}
    for row in found:
        first.setdefault(pair(row), row)
    return list(first.values())


def names_in(names: Iterable[str]) -> re.Pattern[str]:
    """Where one of the names stands as a word of its own, as group 1; of two that overlap the longer one."""
    longest = sorted(set(names), key=lambda name: (-len(name), name))
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest))})(?!\w)")


# Scripts that put no space between words: a character stands for a third of a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
# A letter or digit with what follows and its marks (vowel signs, accents); or a symbol, such as an emoji.
WORD = regex.compile(
    rf"(?V1)[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}]--[{UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]*|\p{{So}}"
)


def words_of(text: str) -> list[str]:
    """The words of a text in any script, as a reader sees them."""
    return WORD.findall(as_read(text))
