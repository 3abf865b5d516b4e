"""A gate by counts of words, a simple rival for requests: is this prompt about the forget set? Then α, else α = 0.

Two scores by kind, of which a prompt is flagged above a threshold that lets 99 % of retain questions through which the
counts never saw: ``overlap``, the mean of the three largest log-odds (forget against retain) among the prompt's runs of
one to three words, and ``likelihood``, the log-probability per word under a bigram model of the forget questions minus
that of the retain questions. A gate has to hold what it looks for: the counts *are* the forget questions, as far as
runs of words go. It forgets nothing, and answers whatever it does not recognise as if nobody had asked for anything.

For each way of asking a forget question — ``direct``, ``paraphrased``, ``prefix`` (half of the answer is given),
``composite`` (behind a retain question), ``composite_paraphrased``, ``misspelt`` (two letters of each name swapped):
``gate/<kind>/flagged_<way>``, the share that a gate of that kind flags; and, for the overlap gate, the ROUGE-L recall
of the greedy answer ``gate/target_<way>`` (no defence), ``gate/offset_<way>`` (the offset at α for all),
``gate/gated_<way>`` (at α where flagged, else the target), ``gate/refusing_<way>`` (a refusal where flagged).
The same of retain questions that no gate saw, ``retain``, and of ``real_authors`` and ``world_facts``: there flags are
false, and recall is to stay.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from unlearn.data.rows import GENERAL, DataError, DataSet, Row
from unlearn.data.sampling import held_out
from unlearn.data.texts import words_of
from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.groups.prefix import continued
from unlearn.evaluation.suite import Split, spaced

UNSEEN = 0.2  # of the retain questions: half for the threshold, half for the report
LEAST = 5  # retain questions
REFUSAL = "I don't know."
MOST = 100  # questions of a split that nobody asked to forget
KINDS = ("overlap", "likelihood")
LONGEST = 3  # words in a run
COUNTED = 3  # runs whose log-odds count
BIGRAM, UNIGRAM = 0.5, 0.4  # weights in the mixture; what is left is uniform over the words of both sets
BEGIN = ""


class Way(NamedTuple):
    """Prompts of one way of asking."""

    texts: Sequence[str]  # that a gate reads
    prompts: Sequence[Sequence[int]]  # ids that a model reads
    gold: Sequence[str]  # what counts as told
    people: Sequence[str]  # whom they are about

    @classmethod
    def asking(cls, ctx: Context, questions: Sequence[str], rows: Sequence[Row]) -> "Way":
        prompts = [ctx.suite.encoder.prompt(q) for q in questions]
        return cls(questions, prompts, [r.answer for r in rows], [r.group for r in rows])


def check(data: DataSet, splits: Sequence[Split]) -> None:
    if (found := len(data.splits["retain"])) < LEAST:
        raise DataError(f"eval.groups: gate needs at least {LEAST} retain questions, and there are {found}")


def measure(ctx: Context) -> Found:
    if not any(m.slope for m in ctx.ensemble.members):  # a model as it is: there is nothing to switch on
        return Found()
    splits = ctx.suite.data.splits
    forget, retain = [r.question for r in splits["forget"]], splits["retain"]
    unseen = held_out(len(retain), UNSEEN)
    seen = [r for i, r in enumerate(retain) if i not in set(unseen)]
    choosing, reported = [retain[i].question for i in unseen[::2]], [retain[i] for i in unseen[1::2]]
    gates = {kind: fit(kind, forget, [r.question for r in seen], choosing) for kind in KINDS}
    general = {split.name: split.rows for split in ctx.suite.splits if split.name in GENERAL}
    others = {name: spaced(rows, MOST) for name, rows in ({"retain": reported} | general).items() if rows}
    asked = {name: Way.asking(ctx, [r.question for r in rows], rows) for name, rows in others.items()}
    values, people = {}, {}
    for name, way in (ways(ctx, seen) | asked).items():
        flags = {kind: np.array([gate.flags(text) for text in way.texts]) for kind, gate in gates.items()}
        target, offset = (replace(ctx, alpha=a).recalls(way.prompts, way.gold) for a in (0.0, ctx.alpha))
        flagged, rouge = flags[KINDS[0]], ctx.suite.semantics.rouge.seeing
        refusal = rouge.recalls([REFUSAL] * len(way.gold), way.gold)
        found = {f"gate/{kind}/flagged_{name}": hit.astype(float) for kind, hit in flags.items()} | {
            f"gate/target_{name}": target, f"gate/offset_{name}": offset,
            f"gate/gated_{name}": np.where(flagged, offset, target),
            f"gate/refusing_{name}": np.where(flagged, refusal, target),
        }  # fmt: skip
        values |= found
        people |= dict.fromkeys(found, way.people)
    return Found(values, people=people)


def ways(ctx: Context, retain: Sequence[Row]) -> dict[str, Way]:
    """How the forget questions are asked; ``retain``: those that are asked first in one prompt with them."""
    split = ctx.suite.split("forget")
    rows = split.rows
    plain, other = [r.question for r in rows], [r.paraphrased_question for r in rows]
    before = [retain[i % len(retain)].question for i in range(len(rows))]
    prompts, given, rest = continued(ctx, [(len(e.answer) - 1) // 2 for e in split.right_answers])
    found = {
        "direct": Way.asking(ctx, plain, rows),
        "prefix": Way([f"{q} {text}" for q, text in zip(plain, given, strict=True)], prompts, rest, split.people),
        "composite": Way.asking(ctx, [f"{b} {q}" for b, q in zip(before, plain, strict=True)], rows),
    }
    if (wrong := [misspelt(q) for q in plain]) != plain:  # there are names, and capital letters to know them by
        found["misspelt"] = Way.asking(ctx, wrong, rows)
    if all(other):
        found["paraphrased"] = Way.asking(ctx, other, rows)
        both = [f"{b} {q}" for b, q in zip(before, other, strict=True)]
        found["composite_paraphrased"] = Way.asking(ctx, both, rows)
    return found


class Counts(NamedTuple):
    """Of one set of questions: in how many each run of words is, and how often words and pairs of words occur."""

    questions: int
    grams: Counter[tuple[str, ...]]
    words: Counter[str]
    pairs: Counter[tuple[str, str]]

    @classmethod
    def of(cls, questions: Iterable[str]) -> "Counts":
        split = [words_of(q) for q in questions]
        grams = Counter(gram for words in split for gram in _grams(words))
        pairs = Counter(pair for words in split for pair in zip([BEGIN, *words], words, strict=False))
        return cls(len(split), grams, Counter(w for words in split for w in words), pairs)

    def log_p(self, words: Sequence[str], i: int, known: int) -> float:
        """Of the i-th word after the one before it: bigrams, words and ``known`` different words mixed."""
        before = words[i - 1] if i else BEGIN
        follows = self.questions if before == BEGIN else self.words[before]
        pair = self.pairs[before, words[i]] / follows if follows else 0.0
        word = self.words[words[i]] / self.words.total()
        return math.log(BIGRAM * pair + UNIGRAM * word + (1 - BIGRAM - UNIGRAM) / known)


class Gate(NamedTuple):
    kind: str
    forget: Counts
    retain: Counts
    threshold: float

    def flags(self, prompt: str) -> bool:
        """Whether the prompt is about what was asked to be forgotten."""
        return SCORES[self.kind](words_of(prompt), self.forget, self.retain) > self.threshold


def fit(kind: str, forget: Iterable[str], retain: Iterable[str], unseen: Iterable[str], rate: float = 0.01) -> Gate:
    """A gate whose threshold, never below 0, flags at most the share ``rate`` of the ``unseen`` retain questions."""
    counts, others = Counts.of(forget), Counts.of(retain)
    scores = sorted((SCORES[kind](words_of(q), counts, others) for q in unseen), reverse=True)
    return Gate(kind, counts, others, max(0.0, scores[math.floor(rate * len(scores))]))


def overlap(words: Sequence[str], forget: Counts, retain: Counts) -> float:
    """Mean of the largest log-odds, log (f + ½)/(F + 1) − log (r + ½)/(R + 1), of the forget questions' runs, or 0."""
    odds = []
    for gram in _grams(words) & forget.grams.keys():
        here = (forget.grams[gram] + 0.5) / (forget.questions + 1)
        odds.append(math.log(here / ((retain.grams[gram] + 0.5) / (retain.questions + 1))))
    return sum(max(0.0, value) for value in sorted(odds, reverse=True)[:COUNTED]) / COUNTED


def likelihood(words: Sequence[str], forget: Counts, retain: Counts) -> float:
    """Log-probability per word under the forget questions' bigram model minus that under the retain questions'."""
    known, places = len(forget.words.keys() | retain.words.keys()) + 1, range(len(words))
    if not words:
        return 0.0
    return sum(forget.log_p(words, i, known) - retain.log_p(words, i, known) for i in places) / len(words)


SCORES = {"overlap": overlap, "likelihood": likelihood}


def _grams(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1)}


def misspelt(question: str) -> str:
    """Two inner letters of each name (a capitalised word after the first) change places: a person still reads it."""
    first, *rest = question.split(" ")
    named = (w[0] + w[2] + w[1] + w[3:] if w[:1].isupper() and len(w) > 3 else w for w in rest)
    return " ".join([first, *named])
