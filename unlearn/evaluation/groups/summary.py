"""The four aggregates of OpenUnlearning's paper (arXiv 2506.12618): Mem, Priv, Util, Agg. After ``privacy``.

``ou/mem``, ``ou/util`` and, for each reading of s_MIA, ``ou/priv/<reading>`` and ``ou/agg/<reading>``. Fluency is the
n-gram entropy of retain answers relative to the gold answers': the paper's classifier is not part of it, so ``ou/util``
and ``ou/agg/<reading>`` compare runs of this framework with each other, not with the paper's table.
"""

from __future__ import annotations

from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics.fluency import relative_fluency
from unlearn.evaluation.metrics.ou_aggregates import (
    ATTACKS,
    S_MIA,
    aggregate,
    memorization,
    privacy,
    truth_ratio_share,
    utility,
)
from unlearn.evaluation.retrained import MissingRetrained

NEEDS = ("privacy",)


def measure(ctx: Context) -> Found:
    m, by_split = ctx.metrics, dict(tuple(ctx.examples.groupby("split")))
    needed = ("model_utility", "forget/paraphrased_prob", "forget/truth_ratio", *(f"mia/{a}" for a in ATTACKS))
    missing = [name for name in needed if name not in m]
    if missing:
        raise MissingRetrained(
            f"eval.groups: summary needs {', '.join(needed)}; missing: {', '.join(missing)} "
            "(list privacy before summary)"
        )
    mem = memorization({
        "extraction_strength": m["forget/extraction_strength"],
        "exact_memorization": m["forget/exact_memorization"],
        "paraphrase_prob": m["forget/paraphrased_prob"],
        "truth_ratio_share": truth_ratio_share(by_split["forget"]["truth_ratio"]),
    })  # fmt: skip
    retain = by_split["retain"]
    reads = relative_fluency(list(retain["generation"]), list(retain["gold"]))["relative_fluency"]
    util = utility({"model_utility": m["model_utility"], "fluency": reads})
    found = {"ou/mem": mem, "ou/util": util, "ou/fluency": reads}
    own = {a: m[f"mia/{a}"] for a in ATTACKS}
    if ctx.retrained is None and not ctx.itself:
        raise MissingRetrained(
            "eval.groups: summary compares attacks with those on the retrained model; give retrained="
        )
    theirs = own if ctx.itself else {a: ctx.retrained.metrics[f"mia/{a}"] for a in ATTACKS}
    for reading in S_MIA:
        found[f"ou/priv/{reading}"] = privacy(own, theirs, reading)
        parts = {"memorization": mem, "privacy": found[f"ou/priv/{reading}"], "utility": util}
        found[f"ou/agg/{reading}"] = aggregate(parts)
    return Found(metrics=found)
