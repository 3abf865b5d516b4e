"""Ensemble members without local weights: black boxes behind an API.

A black box is an ``nn.Module`` without parameters, so it is frozen, evaluated and passed about as any other model. It
cannot be run: where rows are made and texts continued it is asked instead, by the interface that all members have.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Example, Examples
from unlearn.ensemble.kinds import Kind, Part
from unlearn.ensemble.rows import FILE, IDS, RESIDUAL, spread
from unlearn.ensemble.rows_size import Budget, Shape, gib
from unlearn.models.llama import NARROW, device_of
from unlearn.models.states import Reader, State


@dataclass(frozen=True)
class Top:
    """Next-token distributions of n rows: of the likeliest tokens and the residual mass, or of all tokens."""

    ids: np.ndarray | None  # [n, slots] int32; a slot may repeat a token of its row. None: slot v is token v
    logp: np.ndarray  # [n, slots] fp32 log-probabilities
    residual: np.ndarray | None  # [n] fp32 log of the mass of all other tokens; None: there are none

    def rows(self, width: int, device: torch.device) -> Tensor:
        """Log-probabilities [n, V] of ``width`` tokens."""
        if self.ids is None:
            return torch.from_numpy(self.logp[:, :width]).to(device)
        return spread(*(torch.from_numpy(values).to(device) for values in (self.ids, self.logp, self.residual)), width)


class Opaque(nn.Module, Kind):
    """A frozen model that is asked, and whose answers are kept by who made it. Rows are those of ``width`` tokens.

    ``k`` likeliest tokens are known of each row, all if 0.
    """

    dtype = torch.float32  # what its numbers are exact to
    as_given = whole_answers = True

    def __init__(self, width: int, k: int, place: torch.device):
        super().__init__()
        self.config = SimpleNamespace(**{NARROW: width})
        self.k = k
        self.register_buffer("here", torch.empty(0, device=place), persistent=False)  # where its rows are wanted

    @property
    def width(self) -> int:
        return getattr(self.config, NARROW)

    def __deepcopy__(self, memo: dict) -> Opaque:
        return self  # nothing in it ever learns

    @abstractmethod
    def answers(self, examples: Sequence[Example]) -> Iterator[Top]:
        """Rows of the answers, example by example; each answer token is among the tokens of its row.

        All that is not known yet is asked for first.
        """

    @abstractmethod
    def following(self, texts: Sequence[Sequence[int]], count: int = 1) -> Top:
        """Rows after each of the last ``count`` tokens of every text, [texts · count], text by text."""

    def rows(self, examples: Sequence[Example], pad_id: int) -> Tensor:
        return torch.cat([rows.rows(self.width, device_of(self)) for rows in self.answers(examples)])

    def kept(self, name: str, rows: int, budget: Budget) -> dict[str, Any]:
        kind = "topk" if self.k else "fp32"
        size = gib(kind, rows, Shape(self.width, 0, 0), self.k)
        if size > budget.most_gib:
            raise ConfigError(
                f"{rows:,} answer rows of the {name}, a black box, are {size:.3g} GiB as {kind}, over "
                f"trainer.stored_rows_gib={budget.most_gib:g}, and it cannot be run again for each step: give "
                f"trainer.stored_rows_gib={math.ceil(100 * size) / 100:g}"
                + ("" if self.k else ", or pair.target.http.k=20, the likeliest tokens alone")
            )
        return {"kind": kind, "k": self.k}

    def parts(self, name: str, kind: str, k: int, examples: Examples, pad_id: int, batch_size: int) -> Iterator[Part]:
        """One question for each example, unless its answer is known."""
        for start, rows in zip(examples.starts[:-1], self.answers(examples), strict=True):
            found = {FILE: rows.logp} | ({} if rows.ids is None else {IDS: rows.ids, RESIDUAL: rows.residual})
            yield slice(start, start + len(rows.logp)), found

    def state(self, whole: bool = False) -> State:
        return Asked(self)


class Asked(State):
    """A black box is given the texts again, longer, each time it is asked: nothing is kept of them."""

    def __init__(self, model: Opaque):
        self.model = model

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, since: int) -> Reader:
        texts = [text[seen].tolist() for text, seen in zip(ids.cpu(), mask.bool().cpu(), strict=True)]
        n = ids.shape[1] - since
        kept = torch.empty(len(texts), 0)  # the last rows, as many as were asked for

        def rows(part: int | slice) -> Tensor:
            nonlocal kept
            where = torch.arange(n)[part]
            count = n - int(where.min())
            if count > kept.shape[1]:
                found = self.model.following(texts, count).rows(self.model.width, device_of(self.model))
                kept = found.view(len(texts), count, -1)
            return kept[:, where - (n - kept.shape[1])]

        return rows
