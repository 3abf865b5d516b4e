"""Training of one run: what the objective reads, the loop, checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from unlearn.config.derived import learning_rate, terms_of, training_alpha
from unlearn.config.schema import Config
from unlearn.data import spans
from unlearn.data.encoding import Examples
from unlearn.data.sampling import Sampler, held_out
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.frozen import rows_of
from unlearn.ensemble.rows import FrozenRows, LiveRows
from unlearn.ensemble.rows_size import budget
from unlearn.learning.binding import PAIRED, REFUSALS, TEXTS, BoundTerm, bind
from unlearn.learning.loop import Diverged, Loop, Optimisation, accelerator
from unlearn.learning.objective import Dual, Group, Objective, Teacher
from unlearn.models.placement import compiled, parked
from unlearn.runs import stopping
from unlearn.runs.alternates import alternates
from unlearn.runs.points import Probe, probe
from unlearn.runs.trajectory import Watch
from unlearn.runs.workbench import Workbench, frozen_ensemble
from unlearn.store.runlog import CHECKPOINT, DIVERGED, RunLog

log = logging.getLogger(__name__)


def train(cfg: Config, bench: Workbench, ensemble: Ensemble, terms: Sequence[BoundTerm], record: RunLog) -> Watch:
    """Train the trained member, logging steps and trajectory points; go on from a checkpoint if there is one.

    Returns what the trajectory says of collapse and of the best point. A loss that is no longer a number ends the
    training where there is a point to go back to, and fails the run where there is none.
    """
    sampler = _sampler(cfg, bench, terms)
    settings = _optimisation(cfg, sampler)
    with record.stage("rows"):
        objective = _objective(cfg, bench, ensemble, terms, sampler, settings.steps)
        points = probe(cfg, bench, ensemble)
        record.status("running", rows=described(objective))
    loop, watch = Loop(ensemble.trained.model, settings, cfg.trainer.device), Watch()
    checkpoint = record.folder / CHECKPOINT
    _begin(loop, watch, objective, points, record)

    def after(step: int, values: dict[str, float]) -> None:
        bar.update()
        objective.after(step, values)
        watch.see_loss(values["train/loss"])
        measured = _record_step(cfg, record, points, step, settings.steps, step / sampler.steps_per_epoch, values)
        if measured:
            watch.see(step, measured, loop.model)
        due = cfg.trainer.save_every and step % cfg.trainer.save_every == 0 and step < settings.steps
        if due or stopping.asked():
            record.sync()
            _save(loop, watch, objective, checkpoint)
        if stopping.asked():
            log.warning("stopped after step %d of %d: saved", step, settings.steps)
            raise _Interrupted

    learning = compiled(objective.ensemble.trained.model) if cfg.trainer.compile else nullcontext()
    with record.stage("train"), _bar(cfg, loop) as bar, parked(idle(objective, points)), learning:
        try:
            with stopping.patiently():
                loop.run(lambda step: objective.micro_batches(sampler.draw(step)), after)
        except Diverged as error:
            named = error.reading(objective.ids(sampler.draw(loop.step)), f"; all of it in {DIVERGED}")
            record.diverged(named.found)
            if watch.step == 0:
                raise named from None
            watch.broken = str(named)
    record.sync()
    return watch


class _Interrupted(BaseException):
    """Leaves the loop; ``stopping.patiently`` puts the signal that was the cause in its place."""


def _begin(loop: Loop, watch: Watch, objective: Objective, points: Probe | None, record: RunLog) -> None:
    """Take up the checkpoint, if there is one; else log the point before the first step."""
    (record.folder / DIVERGED).unlink(missing_ok=True)  # of an earlier try
    if loop.restore(record.folder / CHECKPOINT):
        log.info("resuming at step %d of %d", loop.step, loop.settings.steps)
        record.rewind(loop.step)
        watch.restore(record.folder / CHECKPOINT, loop.extra)
        if objective.dual is not None:
            objective.dual.value = loop.extra["dual"]
        return
    record.rewind(-1)
    if points is not None:
        values = points()
        record.log(0, 0.0, values)
        watch.start = points(0.0)  # the target, whatever the method begins with
        watch.see(0, values, loop.model)


def _save(loop: Loop, watch: Watch, objective: Objective, checkpoint: Path) -> None:
    loop.extra = watch.save(checkpoint)
    if objective.dual is not None:
        loop.extra["dual"] = objective.dual.value
    loop.save(checkpoint)
    for old in checkpoint.glob("best-*.safetensors"):
        if old.name != f"best-{watch.step}.safetensors":
            old.unlink()


def _record_step(
    cfg: Config, record: RunLog, points: Probe | None, step: int, last: int, epoch: float, values: dict[str, float]
) -> dict[str, float]:
    """Log a step if it is due, with a point of the trajectory if that is due; the last step always has both.

    Returns the point; empty where none was due.
    """
    every = cfg.trainer.eval_every
    measured = points() if points is not None and (step % every == 0 or step == last) else {}
    if measured or step % cfg.trainer.log_every == 0 or step == last:
        record.log(step, epoch, values | measured)
    return measured


def _bar(cfg: Config, loop: Loop) -> tqdm:
    name = f"{cfg.algo.name} {cfg.method.name} α={training_alpha(cfg):g}"
    return tqdm(total=loop.settings.steps, initial=loop.step, desc=name, leave=False,
                disable=None if cfg.trainer.progress else True)  # fmt: skip


def _sampler(cfg: Config, bench: Workbench, terms: Sequence[BoundTerm]) -> Sampler:
    t, splits, refusals = cfg.trainer, bench.data.splits, 0
    read = {name for term in terms for name in term.reads}
    if read & set(REFUSALS):
        refusals = len(bench.data.refusals)
        if not refusals:
            raise ValueError(f"algo {cfg.algo.name!r} trains towards refusals, and {bench.data.name!r} has none")
    counts = tuple(map(len, _alternates(cfg, bench))) if "alternates" in read else ()
    retain = len(splits["retain"])
    return Sampler(
        len(splits["forget"]), retain, refusals, t.forget_batch, t.retain_batch, cfg.seed, held_out(retain, t.held_out),
        counts, cfg.algo.interleave == "epochs",
    )  # fmt: skip


def _alternates(cfg: Config, bench: Workbench) -> list[list[str]]:
    if cfg.algo.alternates is None:
        raise ValueError(f"algo {cfg.algo.name!r} reads other answers, and algo.alternates says nothing of them")
    return alternates(cfg.algo.alternates, bench, cfg.eval.batch_size)


def _optimisation(cfg: Config, sampler: Sampler) -> Optimisation:
    t = cfg.trainer
    return Optimisation(
        lr=learning_rate(cfg), steps=t.steps or t.epochs * sampler.steps_per_epoch, warmup=t.warmup,
        final_lr=t.final_lr, decay="linear", weight_decay=t.weight_decay, betas=(t.beta1, t.beta2), clip=t.clip,
    )  # fmt: skip


# --- what the objective reads -------------------------------------------------------------------------------------


def _objective(
    cfg: Config, bench: Workbench, ensemble: Ensemble, terms: Sequence[BoundTerm], sampler: Sampler, steps: int
) -> Objective:
    """The loss of a step: examples by what the terms read, with the stored rows of the frozen members."""
    alpha, pad = training_alpha(cfg), bench.encoder.tokenizer.pad_token_id
    learner, reference = _learner(cfg, bench, ensemble)
    frozen = {m.name: m for m in (*learner.frozen(alpha), reference)}.values()
    precision, twin = None, None
    if cfg.trainer.precision == "bf16":
        precision, began = torch.bfloat16, learner.trained.fingerprint
        twin = next((m for m in frozen if m.fingerprint == began), None)
        frozen = [m for m in frozen if m.fingerprint != began]
    teacher = _teacher(cfg, bench)
    taught = () if teacher is None else teacher.ensemble.members
    groups, pairs = {}, {}
    for name in dict.fromkeys(name for term in terms for name in term.reads):
        examples, places = read_examples(cfg, bench, sampler, steps, name)
        pairs |= {name: places} if places is not None else {}
        groups[name] = Group(
            examples, _rows(cfg, bench, frozen, examples), cache(partial(_rows, cfg, bench, taught, examples))
        )
    dual = Dual(cfg.algo.dual, cfg.algo.retain_weight, sampler.steps_per_epoch) if cfg.algo.dual is not None else None
    place = accelerator(cfg.trainer.device)
    return Objective(
        learner, terms, groups, pairs, alpha, reference, pad, cfg.trainer.accumulate, place.device, teacher, dual,
        place.process_index, place.num_processes, precision, twin,
    )  # fmt: skip


def _learner(cfg: Config, bench: Workbench, ensemble: Ensemble) -> tuple[Ensemble, Member]:
    """What the objective sees: the whole ensemble, with the target as reference; or, of a method that trains its
    member alone, that member's own softmax, with its frozen start as reference."""
    if not cfg.method.alone:
        target = next(m.name for m in cfg.method.members if m.model == "target" and not m.trained)
        return ensemble, next(m for m in ensemble.members if m.name == target)
    model = next(m.model for m in cfg.method.members if m.trained)
    start = Member("start", bench.model(model), bench.fingerprint(model), 0.0, 0.0, False)
    return Ensemble((replace(ensemble.trained, constant=1.0, slope=0.0),)), start


def _teacher(cfg: Config, bench: Workbench) -> Teacher | None:
    if cfg.algo.teacher is None:
        return None
    return Teacher(frozen_ensemble(cfg.algo.teacher.members, bench), cfg.algo.teacher.alpha)


def described(objective: Objective) -> dict[str, dict[str, Any]]:
    """How the rows that the objective reads are kept, by group and member, for the manifest."""
    return {name: {m: rows.describe() for m, rows in group.rows.items()} for name, group in objective.groups.items()}


def _run_by(objective: Objective) -> list[nn.Module]:
    """Models that every step runs."""
    return [m.model for m in (objective.ensemble.trained, objective.twin) if m is not None]


def idle(objective: Objective, points: Probe | None) -> list[nn.Module]:
    """Models that no step runs, since all their rows are stored."""
    members = [m for m in (*objective.ensemble.members, objective.reference) if not m.trained]
    used = _run_by(objective)
    if objective.teacher is not None:  # its rows are filled when a step first asks
        used += [m.model for m in objective.teacher.ensemble.members]
    if any(term.layer is not None for term in objective.terms):
        used.append(objective.reference.model)
    sets = [group.rows for group in objective.groups.values()]
    sets += [] if points is None else [rows for _, rows in points.points.values()]
    live = {rows.member.name for each in sets for rows in each.values() if isinstance(rows, LiveRows)}
    used += [m.model for m in members if m.name in live]
    found = {id(m.model): m.model for m in members}
    run = {id(p) for model in used for p in model.parameters()}  # LoRA and layers read the weights of a frozen twin
    return [model for model in found.values() if not any(id(p) in run for p in model.parameters())]


def store_rows(cfg: Config, bench: Workbench, ensemble: Ensemble) -> None:
    """Fill the store with the frozen members' rows that training will read."""
    if ensemble.trained is not None:
        terms = bind(**terms_of(cfg))
        sampler = _sampler(cfg, bench, terms)
        _objective(cfg, bench, ensemble, terms, sampler, _optimisation(cfg, sampler).steps)


def _rows(
    cfg: Config, bench: Workbench, members: Sequence[Member], examples: Examples
) -> dict[str, FrozenRows | LiveRows]:
    """Rows that training reads. Those of the plain target may be rounded, if trainer.stored_rows says so."""
    pad, found = bench.encoder.tokenizer.pad_token_id, {}
    for m in members if examples else ():  # a short run of alternating epochs may never reach one of its sets
        rough = not m.slope and m.fingerprint == bench.fingerprint("target")
        found[m.name] = rows_of(bench.store, m, examples, pad, budget(cfg.trainer, rough))
    return found


def read_sets(cfg: Config, bench: Workbench, terms: Sequence[BoundTerm]) -> dict[str, Examples]:
    """The examples whose rows training will read, by group. No model is needed, unless alternates are sampled."""
    sampler = _sampler(cfg, bench, terms)
    steps = _optimisation(cfg, sampler).steps
    names = dict.fromkeys(name for term in terms for name in term.reads)
    return {name: read_examples(cfg, bench, sampler, steps, name)[0] for name in names}


def read_examples(
    cfg: Config, bench: Workbench, sampler: Sampler, steps: int, name: str
) -> tuple[Examples, dict[Any, int] | None]:
    """Examples of a group that have rows, and where in them is what a draw names; None: all questions, in order.

    Of paired groups those that some step draws. Of the others all, which runs of any seed share, unless the steps draw
    less than half: then these alone, which runs of the same seed and batches share.
    """
    if name in PAIRED:
        drawn = _drawn(sampler, steps, name)
        return _paired_examples(cfg, bench, drawn, name), {pair: k for k, pair in enumerate(drawn)}
    make = bench.encoder.text if name in TEXTS else bench.encoder.example
    rows, places = bench.data.splits[TEXTS.get(name, name)], None
    drawn = _drawn(sampler, steps, name)
    if 2 * len(drawn) < len(rows):
        rows, places = [rows[i] for i in drawn], {i: k for k, i in enumerate(drawn)}
    if name in TEXTS and _encodes(cfg, bench):
        return spans.examples(bench.encoder, rows, masks=True), places
    return Examples(make(r.id, r.question, r.answer) for r in rows), places


def _encodes(cfg: Config, bench: Workbench) -> bool:
    """Whether what learns has an encoder."""
    return bench.encodes(next(m.model for m in cfg.method.members if m.trained))


def _drawn(sampler: Sampler, steps: int, name: str) -> list[Any]:
    """Questions, or (question, answer) pairs, that some step will draw; rows of all others are never needed."""
    return sorted({key for step in range(steps) for key in sampler.draw(step).named(name)})


def _paired_examples(cfg: Config, bench: Workbench, drawn: Sequence[tuple[int, int]], name: str) -> Examples:
    """Questions with the refusal or the other answer that was drawn for them."""
    rows, encode = bench.data.splits[PAIRED[name]], bench.encoder.example
    if name == "alternates":
        others = _alternates(cfg, bench)
        return Examples(encode(f"{rows[i].id}/alternate/{k}", rows[i].question, others[i][k]) for i, k in drawn)
    refusals = bench.data.refusals
    return Examples(encode(f"{rows[i].id}/refusal/{k}", rows[i].question, refusals[k]) for i, k in drawn)
