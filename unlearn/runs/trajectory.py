"""What a run measures while it trains: points of its trajectory, a collapse, the best point by a declared rule.

A point is probability and memorisation on some examples of each split, always computed exactly. The rule looks at how
much of the target's probability is lost on the forget set, and how much is kept on retain questions that no step sees,
on real authors and on world facts. It knows nothing of the retrained model and uses no metric of the final evaluation
but probability on the forget set itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearn.config.derived import training_alpha
from unlearn.config.schema import Config
from unlearn.data.encoding import Examples, examples_of
from unlearn.data.sampling import held_out
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.frozen import rows_of
from unlearn.evaluation import scoring
from unlearn.evaluation.collapse import KEPT, why
from unlearn.evaluation.suite import EVALUATED, spaced
from unlearn.learning.objective import Rows
from unlearn.runs.workbench import Workbench
from unlearn.store.files import write_whole
from unlearn.store.runlog import RunLog

RULE = "harmonic mean of the share of forget probability that is lost and the share of other probability that is kept"
NUMBERS = ("step", "score", "kept", "last_score", "first_loss", "last_loss")  # of a Watch
FEW = 5  # held-out questions by which what is kept is not judged
LOSS = 100.0  # |loss| at the last step over max(1, |loss| at the first): more is a diverging loss


@dataclass(frozen=True)
class Probe:
    """Measures what a point of the trajectory shows: teacher-forced, on some examples of each split."""

    ensemble: Ensemble
    alpha: float
    points: Mapping[str, tuple[Examples, Rows]]  # by split
    pad_id: int
    batch_size: int

    def __call__(self, alpha: float | None = None) -> dict[str, float]:
        """At the training α unless another is given."""
        values, alpha = {}, self.alpha if alpha is None else alpha
        for split, (examples, rows) in self.points.items():
            scores = scoring.score(self.ensemble, examples, [alpha], rows, self.pad_id, self.batch_size)[alpha]
            values[f"{split}/prob"] = float(scores.prob.mean())
            values[f"{split}/exact_memorization"] = float(scores.correct.mean())
        return values

    def start(self) -> dict[str, float]:
        """The target's values, by which later ones are judged: of the retain set by held-out questions, if they are not
        too few."""
        few = len(self.points.get("held_out", ((),))[0]) < FEW
        return {name: v for name, v in self(0.0).items() if not (few and name.startswith("held_out/"))}


def probe(cfg: Config, bench: Workbench, ensemble: Ensemble) -> Probe | None:
    if not cfg.trainer.eval_every:
        return None
    alpha, points, pad = training_alpha(cfg), {}, bench.pad_id
    retain = bench.data.splits["retain"]
    chosen = [retain[i] for i in held_out(len(retain), cfg.trainer.held_out)[::2]]  # the other half is for reporting
    for split in (*EVALUATED, "held_out"):
        rows = chosen if split == "held_out" else bench.data.splits.get(split, ())
        examples = examples_of(bench.encoder, spaced(rows, cfg.trainer.eval_examples))
        if examples:
            frozen = [m for m in ensemble.needed([0.0, alpha]) if not m.trained]
            found = {m.name: rows_of(bench.store, m, examples, pad, cfg.trainer.stored_rows_gib) for m in frozen}
            points[split] = (examples, found)
    return Probe(ensemble, alpha, points, pad, cfg.eval.batch_size)


def first_point(points: Probe | None, record: RunLog) -> dict[str, float] | None:
    """Restart the log with what there is before the first step."""
    record.rewind(-1)
    values = None if points is None else points()
    if values is not None:
        record.log(0, 0.0, values)
    return values


@dataclass
class Watch:
    """What the points say: what the target knew, and the best point with its weights."""

    start: dict[str, float] = field(default_factory=dict)  # the target's values, e.g. "forget/prob"
    step: int = 0  # of the best point
    score: float = -1.0
    kept: float = 1.0  # at the latest point
    last_score: float = math.nan
    first_loss: float = math.nan
    last_loss: float = math.nan
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)  # trainable ones, at the best point
    broken: str | None = None  # a loss or gradient that is no longer a number: there are no last weights

    def see(self, step: int, values: Mapping[str, float], model: nn.Module) -> None:
        """A point of the trajectory: ``<split>/prob`` of every split after step 0, 1, 2 …"""
        if not self.start:  # resumed from a checkpoint of a run that had no trajectory: nothing to compare with
            return
        probs = {name: v for name, v in values.items() if name.endswith("/prob")}
        self.kept = kept(probs, self.start)
        self.last_score = score(probs, self.start)
        if self.last_score > self.score:
            self.step, self.score = step, self.last_score
            self.weights = {n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}

    def see_loss(self, loss: float) -> None:
        self.first_loss = loss if math.isnan(self.first_loss) else self.first_loss
        self.last_loss = loss

    def verdict(self) -> str | None:
        """Why the model has collapsed; None if it has not."""
        if self.broken is not None:
            return self.broken
        if self.kept < KEPT:
            return why(self.kept)
        if abs(self.last_loss) > LOSS * max(1.0, abs(self.first_loss)):
            return f"the loss went from {self.first_loss:.3g} to {self.last_loss:.3g}"
        return None

    # --- part of a checkpoint -------------------------------------------------------------------------------------

    def save(self, folder: Path) -> dict[str, float]:
        """Write the best weights; the numbers that ``restore`` needs beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"best-{self.step}.safetensors"
        if self.weights and not path.is_file():
            write_whole(path, lambda p: save_file({k: v.contiguous() for k, v in self.weights.items()}, p))
        return {f"watch/{k}": getattr(self, k) for k in NUMBERS} | {f"start/{k}": v for k, v in self.start.items()}

    def restore(self, folder: Path, extra: Mapping[str, float]) -> None:
        self.start = {k.removeprefix("start/"): v for k, v in extra.items() if k.startswith("start/")}
        for name in NUMBERS:
            setattr(self, name, extra[f"watch/{name}"])
        if self.start:
            self.weights = load_file(folder / f"best-{self.step}.safetensors")


def kept(probs: Mapping[str, float], start: Mapping[str, float]) -> float:
    """Mean share of the target's probability that is left outside the forget set, each split counting at most 1; of the
    retain data only the part that no step sees, where some is held out."""
    names = [n for n in start if n.endswith("/prob") and not n.startswith("forget/")]
    if "held_out/prob" in names:
        names.remove("retain/prob")
    return sum(_share(probs[n], start[n]) for n in names) / len(names)


def _share(value: float, start: float) -> float:
    """Share of the target's probability that is left, at most 1; of NaN or infinity, nothing is."""
    if not math.isfinite(value):
        return 0.0
    return min(1.0, value / start) if start > 0 else 1.0


def score(probs: Mapping[str, float], start: Mapping[str, float]) -> float:
    """The declared rule, between 0 (the target, or a ruin) and 1."""
    lost = 1 - _share(probs["forget/prob"], start["forget/prob"])
    rest = kept(probs, start)
    return 2 * lost * rest / (lost + rest) if lost + rest > 0 else 0.0
