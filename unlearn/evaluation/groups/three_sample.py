"""Is the unlearned model closer to the retrained one or to the target, on the forget set's answer rows?

``forget/js_retrained`` and ``forget/js_target`` are mean Jensen–Shannon divergences (nats) of next-token distributions
along the right answers; ``three_sample/closer`` is 1 where a permutation test (sign flips per question, 5 % level) says
that the model is closer to the retrained one, with its ``p``, ``statistic`` (difference of the divergences) and
``share`` of questions. Questions about one person depend on each other, so signs are flipped person by person where the
data say who that is and there are enough of them for a verdict; ``three_sample/groups`` says how many units there were.
With questions as units (TOFU's forget01 has two authors) the test rejects too easily. Frozen rows come from the store.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unlearn.ensemble.reading import read
from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics.three_sample import jensen_shannon, three_sample
from unlearn.evaluation.retrained import MissingRetrained
from unlearn.evaluation.scoring import stored_rows

NEEDS = ("models",)
NAMES = ("retrained", "target")
LEAST = 5  # groups: with 2^5 sign patterns a p of .05 can be reached


def measure(ctx: Context) -> Found:
    if ctx.itself:
        return Found()
    if ctx.retrained is None or not set(NAMES) <= set(ctx.retrained.models):
        raise MissingRetrained(
            "eval.groups: three_sample compares distributions, so it needs target and retrained as models; "
            "a result file holds no distributions. In a run of a pair that has both, they are at hand"
        )
    split = ctx.suite.split("forget")
    distances, owner = _distances(ctx, split)
    people = np.array([r.group for r in split.rows])
    known = all(people) and len(set(people)) >= LEAST
    test = three_sample(distances["retrained"], distances["target"], owner, people[owner] if known else None)
    means = {n: np.bincount(owner, weights=d) / np.bincount(owner) for n, d in distances.items()}
    found = Found.of("forget", {f"js_{name}": values for name, values in means.items()})
    verdict = {"closer": float(test.closer), "p": test.p, "statistic": test.statistic, "share": test.share}
    return replace(found, metrics={f"three_sample/{k}": v for k, v in (verdict | {"groups": test.groups}).items()})


def _distances(ctx: Context, split) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Divergence of the model from either reference for every answer row of the right answers, and its question."""
    examples, suite = split.right_answers, ctx.suite
    models = {"own": (ctx.ensemble, ctx.alpha), **{name: (ctx.retrained.models[name](), 1.0) for name in NAMES}}
    passes = []
    for ensemble, alpha in models.values():
        rows = stored_rows(ctx.store, suite, ensemble, [alpha], examples)
        passes.append(read(ensemble, examples, [alpha], rows, suite.pad_id, suite.cfg.batch_size))
    found = {name: np.empty(examples.starts[-1]) for name in NAMES}
    for batches in zip(*passes, strict=True):  # all split the examples alike
        logits = {
            name: ensemble.logits(rows, alpha)
            for (name, (ensemble, alpha)), (_, _, rows) in zip(models.items(), batches, strict=True)
        }
        where = examples.rows_of(batches[0][0])
        for name in NAMES:
            found[name][where] = jensen_shannon(logits["own"], logits[name]).cpu().double().numpy()
    return found, np.repeat(np.arange(len(examples)), np.diff(examples.starts))
