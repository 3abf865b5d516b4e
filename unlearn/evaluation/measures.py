"""The metrics that every evaluation has, of one split: from scores and generations to values per example.

Names follow ``<split>/<metric>``; a metric appears where the data have what it needs, and nowhere else.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlearn.evaluation.metrics.arrays import averaged
from unlearn.evaluation.metrics.base import Metric
from unlearn.evaluation.metrics.memorization import exact_memorization, extraction_strength
from unlearn.evaluation.metrics.semantics import Semantics
from unlearn.evaluation.metrics.texts import fluency, rouge_l_f1, rouge_l_recall
from unlearn.evaluation.metrics.tofu import probability, probability_with_options, ratio_scores, truth_ratio
from unlearn.evaluation.scoring import Scores
from unlearn.evaluation.suite import Split, to_forget

MEANS = (  # columns of the examples whose mean is the metric of that name
    "prob", "exact_memorization", "extraction_strength", "rougeL_recall", "rougeL_f1", "prob_options",
    "paraphrased_prob", "wrong_prob", "fluency",
)  # fmt: skip
RATIO = "truth_ratio"  # the column holds the raw R, the metric averages a function of it


def measure(
    split: Split, scores: Scores, generations: list[str] | None, semantics: Semantics
) -> tuple[dict, pd.DataFrame]:
    """Aggregates of a split by metric, and a row per example. ``generations`` None: of a split that is only scored."""
    nll, gold, right = scores.mean_nll, split.gold, split.right
    pieces, wrong = scores.before_eos(scores.right), [nll[w] for w in split.wrong]
    results = {
        "prob": Metric(probability).compute(predictions=nll[right]),
        "exact_memorization": Metric(exact_memorization).compute(predictions=scores.correct[right]),
        "extraction_strength": extraction_strength([pieces[i] == 1 for i in right], semantics.suffix_at_least_one),
    }
    if generations is not None:
        results["rougeL_recall"] = Metric(rouge_l_recall).compute(predictions=generations, references=gold)
        f1 = [rouge_l_f1(g, a, stemmer=True) for g, a in zip(generations, gold, strict=True)]
        results["rougeL_f1"] = averaged("rougeL_f1", np.array(f1))
        results["fluency"] = fluency(generations)
    if split.paraphrased:
        results["paraphrased_prob"] = averaged("paraphrased_prob", np.exp(-nll[split.compared]))
    if all(len(w) for w in wrong):
        against = {"references": wrong, "epsilon": semantics.epsilon}
        results["wrong_prob"] = averaged("wrong_prob", np.array([np.exp(-w).mean() for w in wrong]))
        results[RATIO] = Metric(truth_ratio).compute(
            predictions=nll[split.compared], forget=to_forget(split.name), **against
        )
        if not split.paraphrased:  # TOFU's general splits: options in the answer's own wording
            results["prob_options"] = Metric(probability_with_options).compute(predictions=nll[right], **against)
    table = pd.DataFrame({
        "split": split.name, "id": [r.id for r in split.rows], "nll": nll[right],
        **{name: result.pop("values") for name, result in results.items()},
        "prompt": [r.question for r in split.rows], "gold": gold,
        "generation": generations if generations is not None else [None] * len(gold),
    })  # fmt: skip
    return {k: v for result in results.values() for k, v in result.items()}, table


def per_example(examples: pd.DataFrame, semantics: Semantics) -> dict[str, np.ndarray]:
    """``<split>/<metric>`` → the values whose mean the metric is, of one α; for intervals."""
    found = {}
    for split, table in examples.groupby("split", sort=False):
        for name in (*MEANS, RATIO):
            if name in table and table[name].notna().all():
                values = table[name].to_numpy()
                own = name != RATIO
                found[f"{split}/{name}"] = values if own else ratio_scores(values, to_forget(split), semantics.epsilon)
    return found
