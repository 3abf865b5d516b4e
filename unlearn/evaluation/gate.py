"""A simple rival for requests: is this prompt about what was asked to be forgotten? Then α, else α = 0.

No embeddings and no neural network: counts of words and of runs of words, in forget questions against retain
questions. Two scores, of which a prompt is flagged above a threshold that lets a given share of retain questions
through which the counts never saw:

- ``overlap``: mean of the three largest log-odds (forget against retain) among the prompt's runs of one to three words;
- ``likelihood``: log-probability per word under a bigram model of the forget questions minus that of the retain
  questions.

A gate has to hold what it looks for: the counts *are* the forget questions, as far as runs of words go. It forgets
nothing, and answers whatever it does not recognise as if nobody had asked for anything (eval.groups=[gate]).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unlearn.data.texts import words_of

KINDS = ("overlap", "likelihood")
LONGEST = 3  # words in a run
COUNTED = 3  # runs whose log-odds count
BIGRAM, UNIGRAM = 0.5, 0.4  # weights in the mixture; what is left is uniform over the words of both sets
BEGIN = ""

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """Of one set of questions: in how many each run of words is, and how often words and pairs of words occur."""

    questions: int
    grams: Mapping[Gram, int]
    words: Mapping[str, int]
    pairs: Mapping[tuple[str, str], int]

    @classmethod
    def of(cls, questions: Iterable[str]) -> Counts:
        split = [words_of(q) for q in questions]
        grams = Counter(gram for words in split for gram in set(_grams(words)))
        pairs = Counter(pair for words in split for pair in zip([BEGIN, *words], words, strict=False))
        return cls(len(split), grams, Counter(w for words in split for w in words), pairs)

    @property
    def total(self) -> int:
        return sum(self.words.values())


@dataclass(frozen=True)
class Gate:
    kind: str
    forget: Counts
    retain: Counts
    threshold: float

    def flags(self, prompt: str) -> bool:
        """Whether the prompt is about what was asked to be forgotten."""
        return self.score(prompt) > self.threshold

    def score(self, prompt: str) -> float:
        return SCORES[self.kind](words_of(prompt), self.forget, self.retain)


def fit(kind: str, forget: Iterable[str], retain: Iterable[str], unseen: Iterable[str], rate: float = 0.01) -> Gate:
    """A gate whose threshold flags at most the share ``rate`` of the ``unseen`` retain questions. It is never below 0:
    what is likelier to be retained is not flagged.

    Raises ``ValueError`` for another kind or without questions.
    """
    if kind not in KINDS:
        raise ValueError(f"gate {kind!r}: must be one of {', '.join(KINDS)}")
    counts, others = Counts.of(forget), Counts.of(retain)
    scores = sorted((SCORES[kind](words_of(q), counts, others) for q in unseen), reverse=True)
    if not (counts.questions and others.questions and scores):
        raise ValueError("a gate needs forget questions, retain questions, and retain questions that it has not seen")
    return Gate(kind, counts, others, max(0.0, scores[math.floor(rate * len(scores))]))


def overlap(words: Sequence[str], forget: Counts, retain: Counts) -> float:
    """Mean of the largest log-odds of runs that forget questions have; runs that are lacking count 0."""
    odds = sorted((_log_odds(g, forget, retain) for g in {*_grams(words)} if g in forget.grams), reverse=True)
    return sum(max(0.0, value) for value in odds[:COUNTED]) / COUNTED


def _log_odds(gram: Gram, forget: Counts, retain: Counts) -> float:
    """Of a question that has the run: log (f + ½)/(F + 1) − log (r + ½)/(R + 1)."""
    here = (forget.grams[gram] + 0.5) / (forget.questions + 1)
    return math.log(here / ((retain.grams.get(gram, 0) + 0.5) / (retain.questions + 1)))


def likelihood(words: Sequence[str], forget: Counts, retain: Counts) -> float:
    """Log-probability per word under the forget questions' bigram model minus that under the retain questions'."""
    if not words:
        return 0.0
    known = len(set(forget.words) | set(retain.words)) + 1
    return sum(_log_p(words, forget, known, i) - _log_p(words, retain, known, i) for i in range(len(words))) / len(
        words
    )


def _log_p(words: Sequence[str], counts: Counts, known: int, i: int) -> float:
    before = words[i - 1] if i else BEGIN
    follows = counts.questions if before == BEGIN else counts.words.get(before, 0)
    pair = counts.pairs.get((before, words[i]), 0) / follows if follows else 0.0
    word = counts.words.get(words[i], 0) / counts.total
    return math.log(BIGRAM * pair + UNIGRAM * word + (1 - BIGRAM - UNIGRAM) / known)


SCORES = {"overlap": overlap, "likelihood": likelihood}


def _grams(words: Sequence[str]) -> list[Gram]:
    return [tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1)]


def misspelt(question: str) -> str:
    """Two inner letters of each name change places: what a person would still read.

    Names are words with a capital letter after the first word.
    """
    first, *rest = question.split(" ")
    return " ".join([first, *(_swapped(w) if w[:1].isupper() and len(w) > 3 else w for w in rest)])


def _swapped(word: str) -> str:
    return word[0] + word[2] + word[1] + word[3:]
