"""Training of one run: what the objective reads, the points of the trajectory, the loop, checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from unlearn.binding import REFUSALS, BoundTerm
from unlearn.config import Config
from unlearn.data.encoding import Examples
from unlearn.data.sampling import Sampler
from unlearn.ensemble import Ensemble, Member
from unlearn.evaluation import EVALUATED, spaced
from unlearn.frozen import FrozenRows, LiveRows, rows_of
from unlearn.identity import learning_rate, training_alpha
from unlearn.objective import Group, Objective
from unlearn.runlog import CHECKPOINT, RunLog
from unlearn.scoring import score
from unlearn.trainer import Loop, Optimisation
from unlearn.world import World, examples_of

log = logging.getLogger(__name__)


def train(cfg: Config, world: World, ensemble: Ensemble, terms: Sequence[BoundTerm], record: RunLog) -> None:
    """Train the trained member, logging steps and trajectory points; go on from a checkpoint if there is one."""
    sampler = _sampler(cfg, world, terms)
    settings = _optimisation(cfg, sampler)
    with record.stage("rows"):
        objective = _objective(cfg, world, ensemble, terms, sampler, settings.steps)
        probe = _probe(cfg, world, ensemble)
    loop = Loop(ensemble.trained.model, settings, cfg.trainer.device)
    checkpoint = record.folder / CHECKPOINT
    if loop.restore(checkpoint):
        log.info("resuming at step %d of %d", loop.step, settings.steps)
        record.rewind(loop.step)
    else:
        record.rewind(-1)
        if probe is not None:
            record.log(0, 0.0, probe())
    with record.stage("train"), _bar(cfg, loop) as bar:

        def after(step: int, values: dict[str, float]) -> None:
            bar.update()
            _record_step(cfg, record, probe, step, settings.steps, step / sampler.steps_per_epoch, values)
            if cfg.trainer.save_every and step % cfg.trainer.save_every == 0 and step < settings.steps:
                loop.save(checkpoint)

        loop.run(lambda step: objective.micro_batches(sampler.draw(step)), after)


def _record_step(
    cfg: Config, record: RunLog, probe: Probe | None, step: int, last: int, epoch: float, values: dict[str, float]
) -> None:
    """Log a step if it is due, with a point of the trajectory if that is due; the last step always has both."""
    every = cfg.trainer.eval_every
    measured = probe() if probe is not None and (step % every == 0 or step == last) else {}
    if measured or step % cfg.trainer.log_every == 0 or step == last:
        record.log(step, epoch, values | measured)


def _bar(cfg: Config, loop: Loop) -> tqdm:
    name = f"{cfg.algo.name} {cfg.method.name} α={training_alpha(cfg):g}"
    return tqdm(total=loop.settings.steps, initial=loop.step, desc=name, leave=False,
                disable=None if cfg.trainer.progress else True)  # fmt: skip


def _sampler(cfg: Config, world: World, terms: Sequence[BoundTerm]) -> Sampler:
    t, splits, refusals = cfg.trainer, world.data.splits, 0
    if any(name in REFUSALS for term in terms for name in term.reads):
        refusals = len(world.data.refusals)
        if not refusals:
            raise ValueError(f"algo {cfg.algo.name!r} trains towards refusals, and {world.data.name!r} has none")
    return Sampler(len(splits["forget"]), len(splits["retain"]), refusals, t.forget_batch, t.retain_batch, cfg.seed)


def _optimisation(cfg: Config, sampler: Sampler) -> Optimisation:
    t = cfg.trainer
    return Optimisation(
        lr=learning_rate(cfg), steps=t.steps or t.epochs * sampler.steps_per_epoch, warmup=t.warmup,
        final_lr=t.final_lr, decay="linear", weight_decay=t.weight_decay, betas=(t.beta1, t.beta2), clip=t.clip,
    )  # fmt: skip


# --- what the objective reads -------------------------------------------------------------------------------------


def _objective(
    cfg: Config, world: World, ensemble: Ensemble, terms: Sequence[BoundTerm], sampler: Sampler, steps: int
) -> Objective:
    """The loss of a step: examples by what the terms read, with the stored rows of the frozen members."""
    alpha, pad = training_alpha(cfg), world.encoder.tokenizer.pad_token_id
    reference = next(m.name for m in cfg.method.members if m.model == "target" and not m.trained)
    frozen = [m for m in ensemble.members if not m.trained and (m.weight(alpha) != 0 or m.name == reference)]
    groups, pairs = {}, {}
    for name in dict.fromkeys(name for term in terms for name in term.reads):
        if name in REFUSALS:
            drawn = _drawn(sampler, steps, name)
            pairs[name] = {pair: k for k, pair in enumerate(drawn)}
            examples = _refusal_examples(world, drawn, REFUSALS[name])
        else:
            examples = examples_of(world.encoder, world.data.splits[name])
        groups[name] = Group(examples, _rows(cfg, world, frozen, examples))
    device = next(ensemble.trained.model.parameters()).device
    return Objective(ensemble, terms, groups, pairs, alpha, reference, pad, cfg.trainer.accumulate, device)


def store_rows(cfg: Config, world: World, ensemble: Ensemble) -> None:
    """Fill the store with the frozen members' rows that every objective reads."""
    for split in ("forget", "retain"):
        _rows(cfg, world, ensemble.frozen(training_alpha(cfg)), examples_of(world.encoder, world.data.splits[split]))


def _rows(cfg: Config, world: World, members: Sequence[Member], examples: Examples) -> dict[str, FrozenRows | LiveRows]:
    pad, most = world.encoder.tokenizer.pad_token_id, cfg.trainer.stored_rows_gib
    return {m.name: rows_of(world.store, m, examples, pad, most) for m in members}


def _drawn(sampler: Sampler, steps: int, name: str) -> list[tuple[int, int]]:
    """(question, refusal) pairs that some step will draw; rows of all others are never needed."""
    return sorted({pair for step in range(steps) for pair in sampler.draw(step).pairs(name)})


def _refusal_examples(world: World, drawn: Sequence[tuple[int, int]], split: str) -> Examples:
    rows, refusals = world.data.splits[split], world.data.refusals
    encode = world.encoder.example
    return Examples(encode(f"{rows[i].id}/refusal/{r}", rows[i].question, refusals[r]) for i, r in drawn)


# --- points of the trajectory -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """Measures what a point of the trajectory shows: teacher-forced, on some examples of each split."""

    ensemble: Ensemble
    alpha: float
    points: Mapping[str, tuple[Examples, Mapping[str, FrozenRows | LiveRows]]]  # by split
    pad_id: int
    batch_size: int

    def __call__(self) -> dict[str, float]:
        values = {}
        for split, (examples, rows) in self.points.items():
            scores = score(self.ensemble, examples, [self.alpha], rows, self.pad_id, self.batch_size)[self.alpha]
            values[f"{split}/prob"] = float(scores.prob.mean())
            values[f"{split}/exact_memorization"] = float(scores.correct.mean())
        return values


def _probe(cfg: Config, world: World, ensemble: Ensemble) -> Probe | None:
    if not cfg.trainer.eval_every:
        return None
    alpha, points = training_alpha(cfg), {}
    for split in EVALUATED:
        rows = spaced(world.data.splits.get(split, ()), cfg.trainer.eval_examples)
        if rows:
            examples = examples_of(world.encoder, rows)
            points[split] = (examples, _rows(cfg, world, ensemble.frozen(alpha), examples))
    return Probe(ensemble, alpha, points, world.encoder.tokenizer.pad_token_id, cfg.eval.batch_size)
