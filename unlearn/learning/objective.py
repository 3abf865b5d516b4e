"""From a draw of examples to the loss of one optimiser step: forward pass of the trained member, frozen rows from
the store, the weighted sum, the terms.

Each micro-batch returns its share of the step's loss: values are divided by the number of answer tokens (or answers)
of the *whole* step, on all processes together, so that splitting a step changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import torch
from torch import Tensor

from unlearn.config.schema import DualConfig
from unlearn.data.encoding import Batch, Examples, collate
from unlearn.data.sampling import Draw
from unlearn.ensemble.chunks import LongRows, long, product
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.rows import FrozenRows, LiveRows, Reader, in_blocks
from unlearn.learning.answers import Answers
from unlearn.learning.binding import BoundTerm, read_by
from unlearn.learning.loop import MicroBatch
from unlearn.models.llama import answer_states, device_of, full_precision, head, states_and_hidden, vocabulary

Rows = Mapping[str, FrozenRows | LiveRows]


@dataclass(frozen=True)
class Group:
    """Examples of one kind (forget, retain, refusal …), with the frozen members' rows over them."""

    examples: Examples
    rows: Rows  # by member name; the reference's are always there
    teacher: Callable[[], Rows] = dict  # of the teacher's members, made when a term first asks for them
    # where in the examples is what a draw names, a question or a (question, answer) pair; None: all questions, in order
    places: Mapping[tuple[int, int] | int, int] | None = None

    def indices(self, drawn: Sequence[tuple[int, int] | int]) -> list[int]:
        """Where in the examples is what was drawn."""
        return list(drawn) if self.places is None else [self.places[key] for key in drawn]


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
    alpha: float
    reference: Member  # whose distribution terms compare with: the target, or the trained member's frozen start
    pad_id: int
    accumulate: int = 1
    teacher: Teacher | None = None
    dual: Dual | None = None
    precision: torch.dtype | None = None  # of the trained member's arithmetic (autocast); None: as its weights are
    # In half precision rows are only equal when their batches are: what must equal the trained member at the start is
    # not read but run beside it. The frozen member that it began as; other members with its weights are the same.
    twin: Member | None = None

    @property
    def device(self) -> torch.device:
        return device_of(self.ensemble.trained.model)

    def micro_batches(self, draw: Draw, process: int = 0, processes: int = 1) -> Iterable[MicroBatch]:
        """One process's micro-batches of the step, each a function to be called when its turn comes."""
        indices, count = self.indices(draw), self.accumulate * processes
        totals = {
            name: (sum(len(self.groups[name].examples[i].answer) for i in ids), len(ids))
            for name, ids in indices.items()
        }
        parts = {name: np.array_split(np.array(ids), count) for name, ids in indices.items()}
        for k in range(process, count, processes):
            chunk = {name: split[k].tolist() for name, split in parts.items() if len(split[k])}
            if chunk:
                yield partial(self.loss, chunk, totals)

    def loss(
        self, chunk: Mapping[str, list[int]], totals: Mapping[str, tuple[int, int]]
    ) -> tuple[Tensor, dict[str, float]]:
        """The share of the step's loss that some examples of each group have, and that of each term for the log.

        ``totals``: answer tokens and answers of the whole step, by group.
        """
        answers = self.answers(chunk)
        loss, log = torch.zeros((), device=self.device), {}
        for i, term in enumerate(self.terms):
            if term.reads[0] in answers:
                values = term.function(**{name: answers[name] for name in term.reads})
                tokens, count = totals[term.reads[0]]
                share = values.sum() / (tokens if term.per_token else count)
                weight = self.dual.value if self.dual is not None and i > 0 else term.weight
                loss = loss + weight * share
                log[f"train/{term.name}"] = share.item()
        return loss, log

    def after(self, step: int, log: dict[str, float]) -> None:
        """Update the dual variable, if there is one, from what step 1, 2, … logged."""
        name = f"train/{self.terms[-1].name}"
        if self.dual is not None and name in log:  # in an epoch of the forget set alone there is no retain term
            log["train/dual"] = self.dual.value  # the weight that this step had
            self.dual.update(step, log[name])

    def indices(self, draw: Draw) -> dict[str, list[int]]:
        """Which examples a step reads, by group."""
        return {name: self.groups[name].indices(draw.named(name)) for name in read_by(self.terms)}

    def ids(self, draw: Draw) -> dict[str, list[str]]:
        """Their names."""
        return {name: [self.groups[name].examples[i].id for i in ids] for name, ids in self.indices(draw).items()}

    def answers(self, chunk: Mapping[str, list[int]]) -> dict[str, Answers]:
        """One forward pass over all groups of the micro-batch, then the ensemble's rows per group."""
        batch = collate([self.groups[name].examples[i] for name, ids in chunk.items() for i in ids], self.pad_id)
        batch, model = batch.to(self.device), self.ensemble.trained.model
        with self._autocast():
            states, hidden, reference_hidden = self._forward(batch)
            split = long(len(batch.labels), model)
            learnt = states.to(self.precision or states.dtype) if split else head(model, states).to(self.device)
        beside, rows_of = _Beside(self, batch), self._pieces if split else self._full
        answers, first = {}, 0
        for name, ids in chunk.items():
            group = self.groups[name]
            here = slice(first, first + sum(len(group.examples[i].answer) for i in ids))
            rows, reference = rows_of(group, ids, learnt[here], beside, here)
            answers[name] = Answers(
                rows,
                batch.labels[here],
                batch.owner[here] - batch.owner[first],
                reference,
                self._taught(group, ids) if self.teacher is not None else None,
                None if hidden is None else hidden[here],
                None if reference_hidden is None else reference_hidden[here],
            )
            first = here.stop
        return answers

    def _full(
        self, group: Group, ids: list[int], trained: Tensor, beside: _Beside, here: slice
    ) -> tuple[Tensor, Tensor | Reader]:
        """Rows of the ensemble and of the reference, each [n, V], from the trained member's."""
        rows = {
            m.name: beside.rows[here] if self._is_twin(m) else group.rows[m.name].take(ids, self.device)
            for m in self.ensemble.frozen(self.alpha)
        }
        rows[self.ensemble.trained.name] = trained
        ensemble, name = self.ensemble.logits(rows, self.alpha), self.reference.name
        return ensemble, rows[name] if name in rows else self._frozen(self.reference, group, ids, beside, here)

    def _pieces(
        self, group: Group, ids: list[int], states: Tensor, beside: _Beside, here: slice
    ) -> tuple[LongRows, Reader]:
        """The same, of which no [n, V] is ever made, from the trained member's last hidden states."""
        learner, members = self.ensemble.trained, self.ensemble.frozen(self.alpha)
        read = {m.name: self._frozen(m, group, ids, beside, here) for m in (self.reference, *members)}

        def join(trained: Tensor, part: slice) -> Tensor:
            rows = {m.name: read[m.name](part) for m in members}
            return self.ensemble.logits(rows | {learner.name: trained.to(self.device)}, self.alpha)

        return LongRows(learner.model, states, join), read[self.reference.name]

    def _frozen(self, member: Member, group: Group, ids: list[int], beside: _Beside, here: slice) -> Reader:
        """Rows of a frozen member, part by part; nothing is looked up or computed before the first is asked for."""
        if self._is_twin(member):
            return beside.reader(here)
        reader = cache(partial(group.rows[member.name].reader, ids, self.device))
        return lambda part: reader()(part)

    def _taught(self, group: Group, ids: list[int]) -> Reader:
        """Rows of the teacher; those of its members are made, or found, when they are first asked for."""
        members = cache(lambda: {name: rows.reader(ids, self.device) for name, rows in group.teacher().items()})
        teacher = self.teacher
        return lambda part: teacher.ensemble.logits({k: read(part) for k, read in members().items()}, teacher.alpha)

    def _is_twin(self, member: Member) -> bool:
        return self.twin is not None and member.fingerprint == self.twin.fingerprint

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Last hidden states of the trained member; where a term reads a layer, that one's too, and the reference's."""
        layer = next((t.layer for t in self.terms if t.layer is not None), None)
        model = self.ensemble.trained.model
        if layer is None:
            return answer_states(model, batch), None, None
        with torch.no_grad():
            _, reference = states_and_hidden(self.reference.model, batch, layer)
        return *states_and_hidden(model, batch, layer), reference


class _Beside:
    """Rows of the twin over the batch that the trained member reads, by the same operations in the same shapes."""

    def __init__(self, objective: Objective, batch: Batch):
        self._objective, self._batch = objective, batch

    @cached_property
    def rows(self) -> Tensor:
        """All of them, [N, V]."""
        with torch.no_grad(), self._objective._autocast():
            return head(self._objective.twin.model, self._states).to(self._objective.device)

    def reader(self, here: slice) -> Reader:
        """Some of them, part by part, in blocks as ``LongRows`` reads them."""
        model, precision = self._objective.twin.model, self._objective.precision
        width = vocabulary(model)

        def logits(hidden: Tensor) -> Tensor:
            return full_precision(product(hidden, self._weight, model.get_output_embeddings().bias, width))

        return in_blocks(lambda: self._states[here].to(precision), logits, width, self._objective.device)

    @cached_property
    @torch.no_grad()
    def _states(self) -> Tensor:
        with self._objective._autocast():
            return answer_states(self._objective.twin.model, self._batch)

    @cached_property
    def _weight(self) -> Tensor:
        return self._objective.twin.model.get_output_embeddings().weight.to(self._objective.precision)
