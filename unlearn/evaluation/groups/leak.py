"""leak@k: the worst of k answers drawn to each forget question, beside the retrained model's own (arXiv 2511.04934).

``forget/leak@k`` is the expected largest ROUGE-L recall of k answers. ``forget/leaked@k`` is the share of questions
with an answer among k above ``eval.leak_threshold``, ``forget/attribute_leaked@k`` with one that holds all words that
matter, ``forget/known_leaked@k`` with one that tells the row's key. With a file of yours, ``eval.judge=FILE.py`` that
has ``judge(question, gold, answer)`` from 0 to 1, there is also ``forget/judged_leak@k``.

``forget/leak_gap@k`` is leak@k minus the retrained model's, and ``forget/leak_gap`` that of the largest k: 0 is as good
as never having seen the forget set. ``forget/leak_gap_guess`` is leak@k of the largest k minus that of the guess level
(group guess). Answers are drawn from the full distribution, up to the length of the longest right answer: ROUGE recall
would grow with the length of babble.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import gammaln

from unlearn.config.own import JUDGE, named
from unlearn.data.facts import tells
from unlearn.data.texts import words_of
from unlearn.decoding.generation import Decoding, sample
from unlearn.evaluation.context import Context, Found, Subject
from unlearn.evaluation.metrics.statistics import finite
from unlearn.evaluation.suite import Split
from unlearn.models.seen import remembered

SETTINGS = ("leak_samples", "leak_temperature", "leak_threshold")
SEED = 0  # the same random numbers for every model that is compared
CHOOSING = 1  # other ones, where α is chosen by the leak that is then reported
STOPWORDS = frozenset(
    "a an and are as at be been being but by for from had has have he her hers him his i in into is it its me my "
    "of on or our she so than that the their them then there these they this those to was we were what when where "
    "which who whom whose why how will with would you your s t do does did can could".split()
)


def ks(samples: int) -> list[int]:
    """1, 10, 100, … up to the number of samples, and that number."""
    return sorted({10**i for i in range(len(str(samples)))} | {samples})


def measure(ctx: Context) -> Found:
    split, cfg = ctx.suite.split("forget"), ctx.suite.cfg
    scores = _scores(ctx, _draw(ctx, split), split)
    values: dict[str, np.ndarray] = {}
    for k in ks(cfg.leak_samples):
        values[f"leak@{k}"] = leak_at_k(scores["rouge"], k)
        values[f"leaked@{k}"] = leaked_at_k(scores["rouge"], k, cfg.leak_threshold)
        if "attribute" in scores:
            values[f"attribute_leaked@{k}"] = leaked_at_k(scores["attribute"], k, 0.5)
        if "known" in scores:
            values[f"known_leaked@{k}"] = leaked_at_k(scores["known"], k, 0.5)
        if "judge" in scores:
            values[f"judged_leak@{k}"] = leak_at_k(scores["judge"], k)
        theirs = values[f"leak@{k}"] if ctx.itself else None
        if ctx.retrained is not None and ctx.retrained.has("forget", f"leak@{k}"):  # other projects' logs have none
            theirs = ctx.retrained.column("forget", f"leak@{k}")
        if ctx.beside.guess is not None:
            values["leak_gap_guess"] = values[f"leak@{k}"] - ctx.beside.guess.of(f"leak@{k}", split)
        if theirs is not None:
            values["leak_gap"] = values[f"leak_gap@{k}"] = values[f"leak@{k}"] - theirs
    columns = pd.DataFrame({name: v for name, v in values.items() if name.startswith("leak@")})
    return Found({f"forget/{name}": v for name, v in values.items()}, columns={"forget": columns})


def worst(subject: Subject, split: Split, seed: int = SEED) -> np.ndarray:
    """leak@k of each question at the largest k, of answers drawn as the group draws them, [rows]."""
    return leak_at_k(_recalls(subject, _draw(subject, split, seed), split), subject.suite.cfg.leak_samples)


def _recalls(subject: Subject, drawn: list[list[str]], split: Split) -> np.ndarray:
    return _each(subject.suite.semantics.rouge.seeing.recall, drawn, split.answers)


def _scores(ctx: Context, drawn: list[list[str]], split: Split) -> dict[str, np.ndarray]:
    """How much each drawn answer gives away, [rows, n]: by ROUGE, by words, by the user's own judge."""
    judge = ctx.suite.cfg.judge
    found = {"rouge": _recalls(ctx, drawn, split)}
    wanted = [attribute(r.question, r.answer) for r in split.rows]
    if any(wanted):
        found["attribute"] = _each(attribute_held, drawn, wanted)
    if any(row.key for row in split.rows):
        found["known"] = _each(tells, drawn, [r.key for r in split.rows])
    if judge is not None:
        own, pairs = named(judge, *JUDGE), zip(split.rows, drawn, strict=True)
        judged = [[own(r.question, r.answer, text) for text in texts] for r, texts in pairs]
        found["judge"] = np.array(judged, dtype=float)
        if (wrong := np.argwhere(~((found["judge"] >= 0) & (found["judge"] <= 1)))).size:
            row, answer = wrong[0]
            given = f"{judged[row][answer]!r} of {drawn[row][answer]!r}"
            raise ValueError(f"eval.judge={judge!r}: gave {given} to {split.rows[row].id!r}; must be from 0 to 1")
    return found


def _each(score: Callable[..., float], generations: Sequence[Sequence[str]], by_row: Sequence[Any]) -> np.ndarray:
    """A score of each sample and what belongs to its prompt, [P, n]."""
    found = []
    for texts, row in zip(generations, by_row, strict=True):
        known = {text: score(text, row) for text in set(texts)}  # samples repeat themselves
        found.append([known[text] for text in texts])
    return np.array(found)


def _draw(ctx: Subject, split: Split, seed: int = SEED) -> list[list[str]]:
    """``eval.leak_samples`` answers to each prompt."""
    cfg, n = ctx.suite.cfg, ctx.suite.cfg.leak_samples
    how = Decoding.by(ctx.suite.encoder.tokenizer, max(len(e.answer) for e in split.right_answers), cfg.batch_size)
    prompts = [p for p in split.prompts for _ in range(n)]
    with remembered(ctx.suite.stored_rows_gib):  # each prompt is read once for all its answers
        answers = sample(ctx.ensemble, prompts, ctx.alpha, how, cfg.leak_temperature, seed)
    texts = [ctx.suite.encoder.decode(a) for a in answers]
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def leak_at_k(scores: ArrayLike, k: int) -> np.ndarray:
    """E[max of k of the n scores] of each prompt, [P], from ``scores`` [P, n]: Σ_i s_(i) · C(i−1, k−1) / C(n, k) over
    the scores sorted upwards, since C(i−1, k−1) of the subsets have the i-th smallest as their largest. Unbiased."""
    ordered = np.sort(_told("scores", scores), axis=1)
    n = ordered.shape[1]
    subsets, weights = _log_choose(n, k), np.zeros(n)
    # in logarithms: the binomials themselves overflow near n = 1,000
    weights[k - 1 :] = np.exp(_log_choose(np.arange(k - 1, n), k - 1) - subsets)
    return ordered @ (weights / weights.sum())


def leaked_at_k(scores: ArrayLike, k: int, threshold: float) -> np.ndarray:
    """Probability that one of k answers at least is above ``threshold``, of each prompt, [P]: 1 − C(n − c, k) / C(n, k)
    with c of n samples above it (arXiv 2107.03374, Eq. 1, pass@k)."""
    found = _told("scores", scores)
    subsets, clean = _log_choose(found.shape[1], k), (found <= threshold).sum(axis=1)
    # subsets of k without a leak; where fewer than k samples are clean there is none
    log_missed = _log_choose(np.maximum(clean, k), k) - subsets
    return np.where(np.isnan(found[:, 0]), np.nan, np.where(clean < k, 1.0, -np.expm1(log_missed)))


def _told(name: str, scores: ArrayLike) -> np.ndarray:
    """Scores [P, n], of which rows may be NaN: whatever is answered to these prompts, nothing can be said of it."""
    found = np.asarray(scores, dtype=np.float64)
    finite(name, np.where(np.isnan(found).all(axis=-1, keepdims=True), 0.0, found), ndim=2)
    return found


def _log_choose(n: ArrayLike, k: int) -> np.ndarray:
    n = np.asarray(n, dtype=np.float64)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def attribute_held(text: str, words: Sequence[str]) -> float:
    """Exact attribute match: 1 where all words of ``attribute`` are in the text in their order, else 0; NaN if none."""
    left = iter(words_of(text))
    return float(all(word in left for word in words)) if words else math.nan  # `in` uses it up as far as the word


def attribute(question: str, answer: str) -> tuple[str, ...]:
    """The words of an answer, in any script and without case, that are neither in its question nor in ``STOPWORDS``."""
    known = STOPWORDS.union(words_of(question))
    return tuple(w for w in words_of(answer) if w not in known)
