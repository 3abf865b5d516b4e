"""From a draw of examples to the loss of one optimiser step: forward pass of the trained member, frozen rows from
the store, the weighted sum, the terms.

Each micro-batch returns its share of the step's loss: values are divided by the number of answer tokens (or answers)
of the *whole* step, on all processes together, so that splitting a step changes nothing but rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from unlearn.models.placement import in_parts

Rows = Mapping[str, FrozenRows | LiveRows]
Chunk = Mapping[str, list[int]]  # which examples, by group


@dataclass(frozen=True)
class Group:
    """Examples of one kind (forget, retain, refusal …), with the frozen members' rows over them."""

    examples: Examples
    rows: Rows  # by member name; the reference's are always there
    teacher: Callable[[], Rows] = dict  # of the teacher's members, made when a term first asks for them
    # where in the examples is what a draw names, a question or a (question, answer) pair; None: all questions, in order
    places: Mapping[tuple[int, int] | int, int] | None = None

    def tokens(self, indices: Sequence[int]) -> int:
        """Answer tokens of some examples."""
        return sum(len(self.examples[i].answer) for i in indices)


class Dual:
    """A retain weight λ that rises while the retain term is above its bound: λ ← max(0, λ + lr · (term − bound)).
    (arXiv 2506.05314) ``value`` is part of the trainer's state, saved with a checkpoint."""

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
    accumulate: int | None = 1  # micro-batches of a step; None: so many that each leaves room
    teacher: tuple[Ensemble, float] | None = None  # and its α
    dual: Dual | None = None
    precision: torch.dtype | None = None  # of the trained member's arithmetic (autocast); None: as its weights are
    # In half precision rows are only equal when their batches are: what must equal the trained member at the start is
    # not read but run beside it. The frozen member that it began as; other members with its weights are the same.
    twin: Member | None = None

    @property
    def device(self) -> torch.device:
        return device_of(self.ensemble.trained.model)

    def micro_batches(self, draw: Draw, process: int = 0, processes: int = 1) -> Iterator[MicroBatch]:
        """One process's micro-batches of the step, each a function to be called when its turn comes."""
        indices = self.indices(draw)
        count = self.accumulate * processes if self.accumulate else max(processes, self._parts(indices))
        totals = {name: (self.groups[name].tokens(ids), len(ids)) for name, ids in indices.items()}
        parts = {name: np.array_split(np.array(ids), count) for name, ids in indices.items()}
        for k in range(process, count, processes):
            chunk = {name: split[k].tolist() for name, split in parts.items() if len(split[k])}
            if chunk:
                yield partial(self.loss, chunk, totals)

    def _parts(self, indices: Mapping[str, Sequence[int]]) -> int:
        found = [self.groups[name].examples[i] for name, ids in indices.items() for i in ids]
        longest = max((len(e.prompt) + len(e.answer) for e in found), default=0)
        return in_parts(self.ensemble.trained.model, len(found) * longest)

    def loss(self, chunk: Chunk, totals: Mapping[str, tuple[int, int]]) -> tuple[Tensor, dict[str, float]]:
        """The share of the step's loss that some examples of each group have, and that of each term for the log.
        ``totals``: answer tokens and answers of the whole step, by group."""
        answers = self.answers(chunk)
        loss, log = torch.zeros((), device=self.device), {}
        for i, term in enumerate(self.terms):
            if term.reads[0] in answers:
                values = term.function(**{name: answers[name] for name in term.reads})
                tokens, count = totals[term.reads[0]]
                counted = (tokens if term.first else max(1, tokens - count)) if term.per_token else count
                share = values.sum() / counted
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
        drawn = {name: (draw.named(name), self.groups[name].places) for name in read_by(self.terms)}
        return {name: list(keys) if at is None else [at[key] for key in keys] for name, (keys, at) in drawn.items()}

    def ids(self, draw: Draw) -> dict[str, list[str]]:
        """Their names."""
        return {name: [self.groups[name].examples[i].id for i in ids] for name, ids in self.indices(draw).items()}

    def answers(self, chunk: Chunk) -> dict[str, Answers]:
        """One forward pass over all groups of the micro-batch, then the ensemble's rows per group."""
        batch = collate([self.groups[name].examples[i] for name, ids in chunk.items() for i in ids], self.pad_id)
        batch = batch.to(self.device)
        forward, answers, first = _Forward(self, batch), {}, 0
        for name, ids in chunk.items():
            here = slice(first, first + self.groups[name].tokens(ids))
            rows, reference = forward.rows(self.groups[name], ids, here)
            taught = self._taught(self.groups[name], ids) if self.teacher is not None else None
            hidden = [None if states is None else states[here] for states in forward.hidden]
            owner = batch.owner[here] - batch.owner[first]
            answers[name] = Answers(rows, batch.labels[here], owner, reference, taught, *hidden)
            first = here.stop
        return answers

    def _taught(self, group: Group, ids: list[int]) -> Reader:
        """Rows of the teacher; those of its members are made, or found, when they are first asked for."""
        members = cache(lambda: {name: rows.reader(ids, self.device) for name, rows in group.teacher().items()})
        ensemble, alpha = self.teacher
        return lambda part: ensemble.logits({name: read(part) for name, read in members().items()}, alpha)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)


class _Forward:
    """One micro-batch read by the trained member and, by the same operations in the same shapes, by its twin."""

    def __init__(self, objective: Objective, batch: Batch):
        self.objective, self.batch, self.hidden = objective, batch, (None, None)
        model = objective.ensemble.trained.model
        layer = next((t.layer for t in objective.terms if t.layer is not None), None)
        with objective.autocast():
            if layer is None:
                states = answer_states(model, batch)
            else:  # of the trained member and of the reference
                with torch.no_grad():
                    _, reference = states_and_hidden(objective.reference.model, batch, layer)
                states, hidden = states_and_hidden(model, batch, layer)
                self.hidden = hidden, reference
            self.split = long(len(batch.labels), model)
            if self.split:
                self.learnt = states.to(objective.precision or states.dtype)
            else:
                self.learnt = head(model, states).to(objective.device)

    def rows(self, group: Group, ids: list[int], here: slice) -> tuple[Tensor | LongRows, Tensor | Reader]:
        """Rows of the ensemble and of the reference over some examples, [n, V]; where they are long, no [n, V] is made,
        and a member that is read part by part is not looked up before its first part is asked for."""
        o, learnt, learner = self.objective, self.learnt[here], self.objective.ensemble.trained
        members = o.ensemble.frozen(o.alpha)
        read = {m.name: self._reader(m, group, ids, here) for m in (o.reference, *members)}
        if self.split:

            def join(trained: Tensor, part: slice) -> Tensor:
                rows = {m.name: read[m.name](part) for m in members}
                return o.ensemble.logits(rows | {learner.name: trained.to(o.device)}, o.alpha)

            return LongRows(learner.model, learnt, join), read[o.reference.name]
        rows = {
            m.name: self._twin[here] if self._is_twin(m) else group.rows[m.name].take(ids, o.device) for m in members
        } | {learner.name: learnt}
        return o.ensemble.logits(rows, o.alpha), rows.get(o.reference.name, read[o.reference.name])

    def _reader(self, member: Member, group: Group, ids: list[int], here: slice) -> Reader:
        o = self.objective
        if not self._is_twin(member):
            reader = cache(partial(group.rows[member.name].reader, ids, o.device))
            return lambda part: reader()(part)
        width, bias = vocabulary(o.twin.model), o.twin.model.get_output_embeddings().bias

        def logits(hidden: Tensor) -> Tensor:
            return full_precision(product(hidden, self._weight, bias, width))

        # in blocks as ``LongRows`` reads them
        return in_blocks(lambda: self._states[here].to(o.precision), logits, width, o.device)

    def _is_twin(self, member: Member) -> bool:
        twin = self.objective.twin
        return twin is not None and member.fingerprint == twin.fingerprint

    @cached_property
    def _states(self) -> Tensor:
        with torch.no_grad(), self.objective.autocast():
            return answer_states(self.objective.twin.model, self.batch)

    @cached_property
    def _twin(self) -> Tensor:
        """The twin's rows, [N, V]."""
        with torch.no_grad(), self.objective.autocast():
            return head(self.objective.twin.model, self._states).to(self.objective.device)

    @cached_property
    def _weight(self) -> Tensor:
        return self.objective.twin.model.get_output_embeddings().weight.to(self.objective.precision)
