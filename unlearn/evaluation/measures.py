"""The metrics that every evaluation has, of one split: from scores and generations to values per example.

Names follow ``<split>/<metric>``; a metric appears where the data have what it needs, and nowhere else.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from unlearn.data.facts import tells
from unlearn.evaluation.metrics import tofu
from unlearn.evaluation.metrics.semantics import Semantics
from unlearn.evaluation.metrics.texts import ASCII, dropped, fluency
from unlearn.evaluation.metrics.tofu import RATIO
from unlearn.evaluation.scoring import Scores
from unlearn.evaluation.suite import Split

MEANS = (  # columns of the examples whose mean is the metric of that name
    "prob", "exact_memorization", "extraction_strength", "rougeL_recall", "rougeL_f1", "prob_options",
    "paraphrased_prob", "wrong_prob", "fluency", "known",
)  # fmt: skip
UNREAD = "rouge_unread"  # share of the answers with letters that the dialect's ROUGE drops; there where it is above 0


def measure(
    split: Split, scores: Scores, generations: list[str] | None, semantics: Semantics
) -> tuple[dict[str, float], pd.DataFrame]:
    """Metrics of a split by name, and a row per example. ``generations`` None: of a split that is only scored."""
    nll, gold, right = scores.mean_nll, split.gold, split.right
    pieces, wrong = scores.before_eos(scores.right), [nll[w] for w in split.wrong]
    found = {
        "prob": tofu.probability(nll[right]),
        "exact_memorization": scores.correct[right],
        "extraction_strength": extraction_strength([pieces[i] == 1 for i in right], semantics.suffix_at_least_one),
    }
    if generations is not None:
        found["rougeL_recall"] = semantics.rouge.recalls(generations, gold)
        found["rougeL_f1"] = np.array([semantics.rouge.l_f1(*pair) for pair in zip(generations, gold, strict=True)])
        found["fluency"] = fluency(generations)
        if any(row.key for row in split.rows):
            found["known"] = known(generations, split)
    if split.paraphrased:
        found["paraphrased_prob"] = tofu.probability(nll[split.compared])
    if all(len(w) for w in wrong):
        found["wrong_prob"] = np.array([tofu.probability(w).mean() for w in wrong])
        found[RATIO] = tofu.truth_ratio(nll[split.compared], wrong, semantics.epsilon)
        if not split.paraphrased:  # TOFU's general splits: options in the answer's own wording
            found["prob_options"] = tofu.probability_with_options(nll[right], wrong, semantics.epsilon)
    table = pd.DataFrame({
        "split": split.name, "id": [r.id for r in split.rows], "person": split.people, "nll": nll[right], **found,
        "prompt": [r.question for r in split.rows], "gold": gold,
        "generation": generations if generations is not None else [None] * len(gold),
    })  # fmt: skip
    metrics = tofu.aggregates(split.name, found, semantics.epsilon)
    if generations is not None and semantics.rouge is ASCII and (share := dropped(split.answers)):
        metrics[f"{split.name}/{UNREAD}"] = share
    return metrics, table


def per_example(examples: pd.DataFrame, semantics: Semantics) -> dict[str, np.ndarray]:
    """``<split>/<metric>`` → the values whose mean the metric is, of one α; for intervals."""
    found = {}
    for split, table in examples.groupby("split", sort=False):
        for name in (*MEANS, RATIO):
            if name in table and table[name].notna().any():
                values = table[name].to_numpy()
                if name == RATIO:
                    values = tofu.ratio_scores(str(split), values, semantics.epsilon)
                found[f"{split}/{name}"] = values
    return found


def known(texts: Sequence[str], split: Split) -> np.ndarray:
    """Whether each text tells the key of its row (``data/facts.py``), 1 or 0, [rows]; NaN where the row has no key."""
    return np.array([tells(text, row.key) for text, row in zip(texts, split.rows, strict=True)])


def extraction_strength(right: Sequence[ArrayLike], ou: bool = False) -> np.ndarray:
    """1 − k/L of each answer, [B], k the first token from which every argmax is right: ``right``, [L] booleans *without
    the EOS*; 0 where the last is wrong. (As in arXiv 2506.12618) ``ou`` reproduces OpenUnlearning's quirk, whose search
    stops at k = L − 1: never below 1/L. Answers without tokens are refused."""
    values = []
    for i, answer in enumerate(map(np.asarray, right)):
        if len(answer) == 0:
            raise ValueError(f"answer {i} has no tokens; extraction strength needs at least one")
        wrong = np.flatnonzero(~answer)
        suffix = len(answer) - 1 - wrong[-1] if wrong.size else len(answer)  # tokens after the last wrong one: L − k
        values.append(max(suffix, int(ou)) / len(answer))
    return np.array(values)
