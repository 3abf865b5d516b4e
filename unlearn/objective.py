"""From a draw of examples to the loss of one optimiser step: forward pass of the trained member, frozen rows from
the store, the weighted sum, the terms.

Each micro-batch returns its share of the step's loss: values are divided by the number of answer tokens (or answers)
of the *whole* step, on all processes together, so that splitting a step changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from unlearn.answers import Answers, Reader
from unlearn.binding import PAIRED, BoundTerm
from unlearn.chunks import LongRows, long
from unlearn.config import DualConfig
from unlearn.data.encoding import Batch, Example, Examples, collate
from unlearn.data.sampling import Draw
from unlearn.ensemble import Ensemble, Member
from unlearn.frozen import FrozenRows, LiveRows
from unlearn.models.llama import answer_states, head, states_and_hidden
from unlearn.trainer import MicroBatch

Rows = Mapping[str, FrozenRows | LiveRows]


@dataclass(frozen=True)
class Group:
    """Examples of one kind (forget, retain, refusal …), with the frozen members' rows over them."""

    examples: Examples
    rows: Rows  # by member name; the reference's are always there
    teacher: Callable[[], Rows] = dict  # of the teacher's members, made when a term first asks for them


@dataclass(frozen=True)
class Teacher:
    ensemble: Ensemble
    alpha: float


class Dual:
    """A retain weight λ that rises while the retain term is above its bound: λ ← max(0, λ + lr · (term − bound)).

    (arXiv 2506.05314.) ``value`` is saved with a checkpoint: it is part of the trainer's state.
    """

    def __init__(self, cfg: DualConfig, start: float, steps_per_epoch: int):
        self.cfg, self.value, self.warmup = cfg, start, cfg.warmup * steps_per_epoch

    def update(self, step: int, term: float) -> None:
        """After step 1, 2, …, whose retain term was ``term``."""
        if step > self.warmup:
            self.value = max(0.0, self.value + self.cfg.lr * (term - self.cfg.bound))


@dataclass(frozen=True)
class Objective:
    """Everything that turns a draw into a loss."""

    ensemble: Ensemble
    terms: Sequence[BoundTerm]  # the forget term, then the retain term if there is one
    groups: Mapping[str, Group]  # by what terms read
    pairs: Mapping[str, Mapping[tuple[int, int], int]]  # of paired groups: (question, answer) → example
    alpha: float
    reference: Member  # whose distribution terms compare with: the target, or the trained member's frozen start
    pad_id: int
    accumulate: int
    device: torch.device
    teacher: Teacher | None = None
    dual: Dual | None = None
    process: int = 0  # this process, of
    processes: int = 1

    def micro_batches(self, draw: Draw) -> Iterable[MicroBatch]:
        """This process's micro-batches of the step, each a function to be called when its turn comes."""
        # in the order of the terms: a set's order differs between processes, and with it the last digits of a sum
        indices = {
            name: self._indices(name, draw) for name in dict.fromkeys(name for t in self.terms for name in t.reads)
        }
        totals = {
            name: (sum(len(self.groups[name].examples[i].answer) for i in ids), len(ids))
            for name, ids in indices.items()
        }
        parts = {name: np.array_split(np.array(ids), self.accumulate * self.processes) for name, ids in indices.items()}
        for k in range(self.process, self.accumulate * self.processes, self.processes):
            chunk = {name: split[k].tolist() for name, split in parts.items() if len(split[k])}
            if chunk:
                yield partial(self._loss, chunk, totals)

    def after(self, step: int, log: dict[str, float]) -> None:
        """Update the dual variable, if there is one, from what step 1, 2, … logged."""
        if self.dual is not None:
            log["train/dual"] = self.dual.value  # the weight that this step had
            self.dual.update(step, log[f"train/{self.terms[-1].name}"])

    def _indices(self, name: str, draw: Draw) -> list[int]:
        if name in PAIRED:
            return [self.pairs[name][pair] for pair in draw.pairs(name)]
        return draw.forget if name == "forget" else draw.retain

    def _loss(
        self, chunk: Mapping[str, list[int]], totals: Mapping[str, tuple[int, int]]
    ) -> tuple[Tensor, dict[str, float]]:
        answers = self._answers(chunk)
        loss, log = torch.zeros((), device=self.device), {}
        for i, term in enumerate(self.terms):
            if term.reads[0] in answers:
                values = term(answers)
                tokens, count = totals[term.reads[0]]
                share = values.sum() / (tokens if term.per_token else count)
                weight = self.dual.value if self.dual is not None and i > 0 else term.weight
                loss = loss + weight * share
                log[f"train/{term.name}"] = share.item()
        return loss, log

    def _answers(self, chunk: Mapping[str, list[int]]) -> dict[str, Answers]:
        """One forward pass over all groups of the micro-batch, then the ensemble's rows per group."""
        flat: list[Example] = [self.groups[name].examples[i] for name, ids in chunk.items() for i in ids]
        batch = collate(flat, self.pad_id).to(self.device)
        model = self.ensemble.trained.model
        states, hidden, reference_hidden = self._forward(batch)
        if long(len(batch.labels), model):
            learnt, rows_of = states, self._pieces
        else:
            learnt, rows_of = head(model, states).to(self.device), self._full
        answers, first_row, first_owner = {}, 0, 0
        for name, ids in chunk.items():
            group = self.groups[name]
            n = sum(len(group.examples[i].answer) for i in ids)
            here = slice(first_row, first_row + n)
            rows, target = rows_of(group, ids, learnt[here])
            answers[name] = Answers(
                rows,
                batch.labels[here],
                batch.owner[here] - first_owner,
                target,
                self._taught(group, ids) if self.teacher is not None else None,
                None if hidden is None else hidden[here],
                None if reference_hidden is None else reference_hidden[here],
            )
            first_row, first_owner = first_row + n, first_owner + len(ids)
        return answers

    def _full(self, group: Group, ids: list[int], trained: Tensor) -> tuple[Tensor, Tensor | Reader]:
        """Rows of the ensemble and of the reference, each [n, V], from the trained member's."""
        rows = {m.name: group.rows[m.name].take(ids).to(self.device) for m in self.ensemble.frozen(self.alpha)}
        rows[self.ensemble.trained.name] = trained
        ensemble, name = self.ensemble.logits(rows, self.alpha), self.reference.name
        return ensemble, rows[name] if name in rows else self._reader(group.rows[name], ids)

    def _pieces(self, group: Group, ids: list[int], states: Tensor) -> tuple[LongRows, Reader]:
        """The same, of which no [n, V] is ever made, from the trained member's last hidden states."""
        learner, reference = self.ensemble.trained, self.reference.name
        frozen = {m.name: self._reader(group.rows[m.name], ids) for m in self.ensemble.frozen(self.alpha)}

        def join(trained: Tensor, here: slice) -> Tensor:
            rows = {name: read(here) for name, read in frozen.items()}
            return self.ensemble.logits(rows | {learner.name: trained.to(self.device)}, self.alpha)

        target = frozen[reference] if reference in frozen else self._reader(group.rows[reference], ids)
        return LongRows(learner.model, states, join), target

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Last hidden states of the trained member; where a term reads a layer, that one's too, and the reference's."""
        layer = next((t.layer for t in self.terms if t.layer is not None), None)
        model = self.ensemble.trained.model
        if layer is None:
            return answer_states(model, batch), None, None
        with torch.no_grad():
            _, reference = states_and_hidden(self.reference.model, batch, layer)
        return *states_and_hidden(model, batch, layer), reference

    def _taught(self, group: Group, ids: list[int]) -> Reader:
        """Rows of the teacher; those of its members are made, or found, when they are first asked for."""
        members = cache(lambda: {name: self._reader(rows, ids) for name, rows in group.teacher().items()})

        def read(here: slice) -> Tensor:
            return self.teacher.ensemble.logits({k: rows(here) for k, rows in members().items()}, self.teacher.alpha)

        return read

    def _reader(self, rows: FrozenRows | LiveRows, ids: list[int]) -> Reader:
        """Their rows on this device; nothing is looked up or computed before the first is asked for."""
        reader = cache(partial(rows.reader, ids))
        return lambda here: reader()(here).to(self.device)
