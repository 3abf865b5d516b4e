"""Points of the trajectory: what a run logs of probability and memorisation while it trains, always exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unlearn.config.derived import training_alpha
from unlearn.config.schema import Config
from unlearn.data.encoding import Examples, examples_of
from unlearn.data.sampling import held_out
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.frozen import rows_of
from unlearn.ensemble.rows import FrozenRows, LiveRows
from unlearn.evaluation.scoring import score
from unlearn.evaluation.suite import EVALUATED, spaced
from unlearn.runs.workbench import Workbench


@dataclass(frozen=True)
class Probe:
    """Measures what a point of the trajectory shows: teacher-forced, on some examples of each split."""

    ensemble: Ensemble
    alpha: float
    points: Mapping[str, tuple[Examples, Mapping[str, FrozenRows | LiveRows]]]  # by split
    pad_id: int
    batch_size: int

    def __call__(self, alpha: float | None = None) -> dict[str, float]:
        """At the training α unless another is given."""
        values, alpha = {}, self.alpha if alpha is None else alpha
        for split, (examples, rows) in self.points.items():
            scores = score(self.ensemble, examples, [alpha], rows, self.pad_id, self.batch_size)[alpha]
            values[f"{split}/prob"] = float(scores.prob.mean())
            values[f"{split}/exact_memorization"] = float(scores.correct.mean())
        return values


def probe(cfg: Config, bench: Workbench, ensemble: Ensemble) -> Probe | None:
    if not cfg.trainer.eval_every:
        return None
    alpha, points, pad = training_alpha(cfg), {}, bench.encoder.tokenizer.pad_token_id
    retain = bench.data.splits["retain"]
    chosen = [retain[i] for i in held_out(len(retain), cfg.trainer.held_out)[::2]]  # the other half is for reporting
    for split in (*EVALUATED, "held_out"):
        rows = chosen if split == "held_out" else bench.data.splits.get(split, ())
        rows = spaced(rows, cfg.trainer.eval_examples)
        if rows:
            examples = examples_of(bench.encoder, rows)
            frozen = [m for m in ensemble.needed([0.0, alpha]) if not m.trained]
            found = {m.name: rows_of(bench.store, m, examples, pad, cfg.trainer.stored_rows_gib) for m in frozen}
            points[split] = (examples, found)
    return Probe(ensemble, alpha, points, pad, cfg.eval.batch_size)
