"""Models whose weights are elsewhere: what stands in an ensemble for a black box.

Such a model is an ``nn.Module`` without parameters, so it is frozen, evaluated and passed about as any other. What it
cannot do is to be run. Where rows are made (``frozen.py``, ``scoring.py``) and where texts are continued
(``states.py``, ``drafts.py``) it is asked instead; nothing else tells it from a local model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from unlearn.data.encoding import Example
from unlearn.ensemble.ensemble import Ensemble
from unlearn.models.llama import NARROW


@dataclass(frozen=True)
class Top:
    """Next-token distributions of n rows: of the likeliest tokens and the residual mass, or of all tokens."""

    ids: np.ndarray | None  # [n, slots] int32; a slot may repeat a token of its row. None: slot v is token v
    logp: np.ndarray  # [n, slots] fp32 log-probabilities
    residual: np.ndarray | None  # [n] fp32 log of the mass of all other tokens; None: there are none


class Opaque(nn.Module, ABC):
    """A frozen model that is asked, and whose answers are kept by who made it. Rows are those of ``width`` tokens.

    ``k`` likeliest tokens are known of each row, all if 0.
    """

    dtype = torch.float32  # what its numbers are exact to

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

    @abstractmethod
    def say(self, prompts: Sequence[Sequence[int]], most: int, ends: Collection[int]) -> list[list[int]]:
        """Its own greedy answers, at most ``most`` tokens, up to and with the first of ``ends``."""

    @abstractmethod
    def spent(self) -> dict[str, int]:
        """Requests and tokens that it took so far."""

    @abstractmethod
    def note(self, what: str, said: int, before: Mapping[str, int]) -> None:
        """For the manifest: so many tokens were said since it had ``spent`` as much as before."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a run's manifest says of it."""


def noted(ensemble: Ensemble, alpha: float, say: Callable[[], list[list[int]]]) -> list[list[int]]:
    """What ``say`` lets the ensemble say; a black box among its members notes what that took."""
    asked = [(m.model, m.model.spent()) for m in ensemble.members if isinstance(m.model, Opaque)]
    answers = say()
    for model, before in asked:
        what = "alone" if len(ensemble.members) == 1 else f"alpha {alpha:g}"
        model.note(what, sum(map(len, answers)), before)
    return answers
