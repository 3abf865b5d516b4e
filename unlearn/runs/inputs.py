"""What the training of a run reads: terms, draws, examples, and the rows of frozen members over them."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any

import torch

from unlearn.config.derived import terms_of, training_alpha
from unlearn.config.schema import Config
from unlearn.data import spans
from unlearn.data.encoding import Examples
from unlearn.data.made_up import POOLS
from unlearn.data.rows import Row
from unlearn.data.sampling import Sampler, held_out
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.frozen import rows_of
from unlearn.ensemble.rows import budget
from unlearn.learning.binding import PAIRED, REFUSALS, TEXTS, bind, read_by
from unlearn.learning.objective import Dual, Group, Objective, Rows
from unlearn.runs.alternates import alternates
from unlearn.runs.near import near
from unlearn.runs.workbench import Workbench, frozen_ensemble


class Inputs:
    """Of one run, all made by its config; no model is needed before ``objective``, unless alternates are sampled."""

    def __init__(self, cfg: Config, bench: Workbench, steps: int | None = None):
        """``steps``: how many will be drawn, if not as many as the config says."""
        self.cfg, self.bench = cfg, bench
        self.terms = bind(**terms_of(cfg))
        self.sampler = self._sampler()
        self.steps = steps or cfg.trainer.steps or cfg.trainer.epochs * self.sampler.steps_per_epoch

    def objective(self, ensemble: Ensemble) -> Objective:
        """The loss of a step: examples by what the terms read, with the stored rows of the frozen members."""
        cfg, alpha, dual, teacher = self.cfg, training_alpha(self.cfg), self.cfg.algo.dual, self.cfg.algo.teacher
        learner, reference = self._learner(ensemble)
        frozen = {m.name: m for m in (*learner.frozen(alpha), reference)}.values()
        precision, twin = None, None
        if cfg.trainer.precision == "bf16":
            precision, began = torch.bfloat16, learner.trained.fingerprint
            twin = next((m for m in frozen if m.fingerprint == began), None)
            frozen = [m for m in frozen if m.fingerprint != began]
        taught = None if teacher is None else (frozen_ensemble(teacher.members, self.bench), teacher.alpha)
        groups = {}
        for name in read_by(self.terms):
            examples, places = self.read(name)
            later = cache(partial(self.rows, taught[0].members, examples)) if taught else dict
            groups[name] = Group(examples, self.rows(frozen, examples), later, places)
        rising = Dual(dual, cfg.algo.retain_weight, self.sampler.steps_per_epoch) if dual is not None else None
        pad, parts = self.bench.pad_id, cfg.trainer.accumulate
        return Objective(learner, self.terms, groups, alpha, reference, pad, parts, taught, rising, precision, twin)

    def rows(self, members: Iterable[Member], examples: Examples) -> Rows:
        """Rows by member. Those of the plain target may be rounded, if trainer.stored_rows says so."""
        bench, found = self.bench, {}
        for m in members if examples else ():  # a short run of alternating epochs may never reach one of its sets
            rough = not m.slope and m.fingerprint == bench.fingerprint("target")
            found[m.name] = rows_of(bench.store, m, examples, bench.pad_id, budget(self.cfg.trainer, rough))
        return found

    def read(self, name: str) -> tuple[Examples, dict[Any, int] | None]:
        """Examples of a group that have rows, and where in them is what a draw names; None: all questions, in order. Of
        paired groups those that some step draws; of others all, for runs of any seed, unless steps draw under half."""
        # questions, or (question, answer) pairs
        drawn: list[Any] = sorted({key for step in range(self.steps) for key in self.sampler.draw(step).named(name)})
        places = {key: k for k, key in enumerate(drawn)}
        encoder = self.bench.encoder
        if name in PAIRED:
            rows, kind = self._rows(PAIRED[name]), "alternate" if name == "alternates" else "refusal"
            found = []
            for i, k in drawn:
                answer = self._alternates[i][k] if name == "alternates" else self._refusals[k]
                found.append(encoder.example(f"{rows[i].id}/{kind}/{k}", rows[i].question, answer))
            return Examples(found), places
        rows = self._rows(TEXTS.get(name, name))
        if 2 * len(drawn) < len(rows):
            rows = [rows[i] for i in drawn]
        else:
            places = None
        if name in TEXTS and self.bench.encodes(_trained(self.cfg)):
            return spans.examples(encoder, rows, masks=True), places
        encode = encoder.text if name in TEXTS else encoder.example
        return Examples(encode(r.id, r.question, r.answer) for r in rows), places

    def _sampler(self) -> Sampler:
        t, algo, data, names = self.cfg.trainer, self.cfg.algo, self.bench.data, read_by(self.terms)
        forget, retain = len(data.splits["forget"]), len(data.splits["retain"])
        refusals = len(self._refusals) if set(names) & set(REFUSALS) else 0
        counts = tuple(map(len, self._alternates)) if "alternates" in names else ()
        sizes = forget, len(self._rows("retain")), refusals, t.forget_batch, t.retain_batch
        left_out = held_out(retain, t.held_out)
        return Sampler(*sizes, self.cfg.seed, left_out, counts, algo.interleave == "epochs")

    @property
    def _refusals(self) -> tuple[str, ...]:
        """The data set's own, or five general ones."""
        return self.bench.data.refusals or POOLS["refusals"]

    def _rows(self, split: str) -> tuple[Row, ...]:
        """Rows of a split; those to retain are followed by the near questions, if there are any."""
        rows = self.bench.data.splits[split]
        return (*rows, *self._near) if split == "retain" else rows

    @cached_property
    def _near(self) -> tuple[Row, ...]:
        return () if self.cfg.algo.near is None else near(self.cfg.algo.near, self.bench, self.cfg.eval.batch_size)

    @cached_property
    def _alternates(self) -> list[list[str]]:
        algo = self.cfg.algo
        if algo.alternates is None:
            raise ValueError(f"algo {algo.name!r} reads other answers, and algo.alternates says nothing of them")
        return alternates(algo.alternates, self.bench, self.cfg.eval.batch_size)

    def _learner(self, ensemble: Ensemble) -> tuple[Ensemble, Member]:
        """What the objective sees: the whole ensemble, with the target as reference; or, of a method that trains its
        member alone, that member's own softmax, with its frozen start as reference."""
        if not self.cfg.method.alone:
            target = next(m.name for m in self.cfg.method.members if m.model == "target" and not m.trained)
            return ensemble, next(m for m in ensemble.members if m.name == target)
        model = _trained(self.cfg)
        start = Member("start", self.bench.model(model), self.bench.fingerprint(model), 0.0, 0.0, False)
        return Ensemble((replace(ensemble.trained, constant=1.0, slope=0.0),)), start


def _trained(cfg: Config) -> str:
    return next(m.model for m in cfg.method.members if m.trained)
