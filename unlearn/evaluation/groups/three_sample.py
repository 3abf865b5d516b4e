"""Is the unlearned model closer to the retrained one or to the target, on the forget set's answer rows?

``forget/js_retrained`` and ``forget/js_target`` are mean Jensen–Shannon divergences (nats) of next-token distributions
along the right answers; ``three_sample/closer`` is 1 where a permutation test (sign flips per question, 5 % level) says
that the model is closer to the retrained one, with its ``p``, ``statistic`` (difference of the divergences) and
``share`` of questions. Questions about one person depend on each other, so signs are flipped person by person where the
data say who that is and there are enough of them for a verdict; ``three_sample/groups`` says how many units there were.
With questions as units (TOFU's forget01 has two authors) the test rejects too easily.

A two-sample test against the retrained model rejects even another retraining, given enough rows. So the question is
relative (after Google Research, AISTATS 2026, who compare kernel divergences of samples).
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from unlearn.config.schema import ConfigError
from unlearn.ensemble.frozen import read
from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics.statistics import finite
from unlearn.evaluation.scoring import stored_rows
from unlearn.evaluation.suite import Split

NEEDS = ("models",)
NAMES = ("retrained", "target")
LEAST = 5  # groups: with 2^5 sign patterns a p of .05 can be reached
LEVEL = 0.05
FLIPS = 9_999  # with the observed signs: 10,000
BLOCK = 1_000  # flips at a time
CHUNK_ELEMENTS = 2**22  # rows are taken in blocks: several [rows, V] tensors live at once


def measure(ctx: Context) -> Found:
    if ctx.itself:
        return Found()
    if ctx.retrained is None or not set(NAMES) <= set(ctx.retrained.models):
        rule = "three_sample compares distributions, so it needs target and retrained as models, not a result file"
        raise ConfigError(f"eval.groups: {rule}")
    split = ctx.suite.split("forget")
    distances, owner = _distances(ctx, split)
    people = np.array([r.group for r in split.rows])
    known = all(people) and len(set(people)) >= LEAST
    test = three_sample(distances["retrained"], distances["target"], owner, people[owner] if known else None)
    means = {f"js_{name}": np.bincount(owner, weights=d) / np.bincount(owner) for name, d in distances.items()}
    verdict = {"closer": float(test.closer), "p": test.p, "statistic": test.statistic,
               "share": test.share, "groups": test.groups}  # fmt: skip
    return replace(Found.of("forget", means), metrics={f"three_sample/{k}": v for k, v in verdict.items()})


def _distances(ctx: Context, split: Split) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Divergence of the model from either reference for every answer row of the right answers, and its question."""
    examples, suite = split.right_answers, ctx.suite
    models = [(ctx.ensemble, ctx.alpha), *((ctx.retrained.models[name](), 1.0) for name in NAMES)]
    passes = []
    for ensemble, alpha in models:
        rows = stored_rows(ctx.store, suite, ensemble, [alpha], examples)
        passes.append(read(ensemble, examples, [alpha], rows, suite.pad_id, suite.cfg.batch_size))
    found = {name: np.empty(examples.starts[-1]) for name in NAMES}
    for batches in zip(*passes, strict=True):  # all split the examples alike
        pairs = zip(models, batches, strict=True)
        own, *others = [ensemble.logits(rows, alpha) for (ensemble, alpha), (_, _, rows) in pairs]
        where = examples.rows_of(batches[0][0])
        for name, logits in zip(NAMES, others, strict=True):
            found[name][where] = jensen_shannon(own, logits).cpu().double().numpy()
    return found, np.repeat(np.arange(len(examples)), np.diff(examples.starts))


class ThreeSample(NamedTuple):
    statistic: float  # mean over examples of d_target − d_retrained, in their unit; above 0: closer to retrained
    p: float  # of "not closer to the retrained model", one-sided
    share: float  # of examples that are closer to the retrained model
    closer: bool  # the verdict: p ≤ level
    groups: int  # units whose signs were flipped


def three_sample(
    d_retrained: ArrayLike,
    d_target: ArrayLike,
    example: ArrayLike,
    group: ArrayLike | None = None,
    flips: int = FLIPS,
    seed: int = 0,
) -> ThreeSample:
    """Test whether distances to the retrained model are smaller than those to the target, [N] each, of the same rows.

    ``example``: [N] which answer a row belongs to; rows of one answer depend on each other, so they are averaged first.
    ``group``: [N] a larger unit that flips as one where examples depend too (an author's questions); default: the
    example. Under H0 the difference of a group is symmetric about 0 (or lower), and then p ≤ level with a probability
    of at most the level, whatever the number of groups. All 2^groups sign patterns are counted where they are no more
    than ``flips``, else ``flips`` random ones and the observed one.
    """
    away, near = finite("d_target", d_target), finite("d_retrained", d_retrained)
    _, first, owner = np.unique(example, return_index=True, return_inverse=True)
    difference = np.bincount(owner, weights=away - near) / np.bincount(owner)
    unit = np.arange(len(difference))
    if group is not None:
        unit = np.unique(np.asarray(group)[first], return_inverse=True)[1]
    sums = np.bincount(unit, weights=difference)
    p = _p_value(sums, flips, seed)
    return ThreeSample(float(difference.mean()), p, float((difference > 0).mean()), p <= LEVEL, len(sums))


def _p_value(sums: np.ndarray, flips: int, seed: int) -> float:
    """Share of sign patterns whose sum is at least the observed one."""
    observed = sums.sum() - 1e-12 * np.abs(sums).sum()  # sums in another order may differ in the last digit
    n = len(sums)
    if n < 63 and 2**n <= flips:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(((1 - 2 * patterns) @ sums >= observed).mean())
    random = np.random.default_rng(seed)
    reached = 0
    for start in range(0, flips, BLOCK):
        signs = 1 - 2 * random.integers(0, 2, (min(BLOCK, flips - start), n), dtype=np.int8)
        reached += int((signs @ sums >= observed).sum())
    return (1 + reached) / (1 + flips)


@torch.no_grad()
def jensen_shannon(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2, per row, [N, V] twice → [N] fp32, nats, from 0 to log 2. As ½ Σ_v p (log 2
    − softplus(log q − log p)) + the same with p and q exchanged: no m, no logarithm of 0, and logits may be −∞."""
    rows = max(1, CHUNK_ELEMENTS // max(1, p_logits.shape[1]))
    parts = []
    for pair in zip(p_logits.split(rows), q_logits.split(rows), strict=True):
        p, q = (logits.float().log_softmax(-1) for logits in pair)
        parts.append((_half(p, q) + _half(q, p)) / 2)
    return torch.cat(parts).clamp(0, math.log(2))


def _half(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖m) of log-probabilities, [N, V] → [N]."""
    term = p.exp() * (math.log(2) - F.softplus(q - p))
    return torch.where(p == -torch.inf, 0.0, term).sum(-1)  # 0 · log 0 = 0
