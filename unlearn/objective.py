"""From a draw of examples to the loss of one optimiser step: forward pass of the trained member, frozen rows from
the store, the weighted sum, the terms.

Each micro-batch returns its share of the step's loss: values are divided by the number of answer tokens (or answers)
of the *whole* step, so that splitting a step changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from unlearn.answers import Answers
from unlearn.binding import BoundTerm
from unlearn.data.encoding import Example, Examples, collate
from unlearn.data.sampling import Draw
from unlearn.ensemble import Ensemble, combine
from unlearn.frozen import FrozenRows, LiveRows
from unlearn.models.llama import answer_rows
from unlearn.trainer import MicroBatch


@dataclass(frozen=True)
class Group:
    """Examples of one kind (forget, retain or refusal), with the frozen members' rows over them."""

    examples: Examples
    rows: Mapping[str, FrozenRows | LiveRows]  # by member name; the target's are always there: it is the reference


@dataclass(frozen=True)
class Objective:
    """Everything that turns a draw into a loss."""

    ensemble: Ensemble
    terms: Sequence[BoundTerm]
    groups: Mapping[str, Group]  # by what terms read
    pairs: Mapping[str, Mapping[tuple[int, int], int]]  # of refusal groups: (question, refusal) → example
    alpha: float
    target: str  # name of the member that is the target
    pad_id: int
    accumulate: int
    device: torch.device

    def micro_batches(self, draw: Draw) -> Iterable[MicroBatch]:
        """The step's micro-batches, each a function to be called when its turn comes."""
        # in the order of the terms: a set's order differs between processes, and with it the last digits of a sum
        indices = {
            name: self._indices(name, draw) for name in dict.fromkeys(name for t in self.terms for name in t.reads)
        }
        totals = {
            name: (sum(len(self.groups[name].examples[i].answer) for i in ids), len(ids))
            for name, ids in indices.items()
        }
        parts = {name: np.array_split(np.array(ids), self.accumulate) for name, ids in indices.items()}
        for k in range(self.accumulate):
            chunk = {name: split[k].tolist() for name, split in parts.items() if len(split[k])}
            if chunk:
                yield partial(self._loss, chunk, totals)

    def _indices(self, name: str, draw: Draw) -> list[int]:
        if name in self.pairs:
            return [self.pairs[name][pair] for pair in draw.pairs(name)]
        return draw.forget if name == "forget" else draw.retain

    def _loss(
        self, chunk: Mapping[str, list[int]], totals: Mapping[str, tuple[int, int]]
    ) -> tuple[Tensor, dict[str, float]]:
        answers = self._answers(chunk)
        loss, log = torch.zeros((), device=self.device), {}
        for term in self.terms:
            if term.reads[0] in answers:
                values = term(answers)
                tokens, count = totals[term.reads[0]]
                share = values.sum() / (tokens if term.per_token else count)
                loss = loss + term.weight * share
                log[f"train/{term.name}"] = share.item()
        return loss, log

    def _answers(self, chunk: Mapping[str, list[int]]) -> dict[str, Answers]:
        """One forward pass over all groups of the micro-batch, then the ensemble's rows per group."""
        flat: list[Example] = [self.groups[name].examples[i] for name, ids in chunk.items() for i in ids]
        batch = collate(flat, self.pad_id).to(self.device)
        trained = answer_rows(self.ensemble.trained.model, batch)
        answers, first_row, first_owner = {}, 0, 0
        for name, ids in chunk.items():
            group = self.groups[name]
            n = sum(len(group.examples[i].answer) for i in ids)
            here = slice(first_row, first_row + n)
            take = {m: partial(self._take, group.rows[m], ids) for m in group.rows}
            rows = {m.name: take[m.name]() for m in self.ensemble.frozen(self.alpha)}
            rows[self.ensemble.trained.name] = trained[here]
            reference = rows.get(self.target, take[self.target])
            answers[name] = Answers(
                combine(self.ensemble.members, rows, self.alpha),
                batch.labels[here],
                batch.owner[here] - first_owner,
                reference,
            )
            first_row, first_owner = first_row + n, first_owner + len(ids)
        return answers

    def _take(self, rows: FrozenRows | LiveRows, ids: list[int]) -> Tensor:
        return rows.take(ids).to(self.device)
