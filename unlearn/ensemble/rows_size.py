"""The size of stored answer rows by the way in which they are kept; told from numbers, before any model.

``fp32`` logits and last ``hidden`` states are exact. ``fp16`` logits and the ``topk`` likeliest tokens are nearly so,
and only for the target: the anchor must cancel the offset at step 0, where the smallest error is an error of P.
"""

import math
from dataclasses import dataclass

from unlearn.config.schema import ROUGH_ROWS, TrainerConfig

EXACT = ("fp32", "hidden")
FULL_GIB = 1.0  # `auto` keeps hidden states of sets whose fp32 logits are larger than this


@dataclass(frozen=True)
class Shape:
    """What a model's rows are made of."""

    vocabulary: int
    hidden: int
    bytes: int  # of a number of its hidden states


@dataclass(frozen=True)
class Budget:
    """What the settings allow for the rows of one member over one set of examples."""

    kind: str = "auto"  # one of config.STORED_ROWS
    k: int = 0  # of topk
    most_gib: float = 1.0
    rough: bool = False  # they may be rounded
    refuse: bool = False  # a set that takes more; else its rows are computed when needed

    def settled(self, rows: int, shape: Shape) -> str:
        """The kind, where the settings leave it open."""
        if self.kind != "auto":
            return self.kind
        return "fp32" if gib("fp32", rows, shape) <= min(FULL_GIB, self.most_gib) else "hidden"

    def fits(self, rows: int, shape: Shape) -> bool:
        return gib(self.settled(rows, shape), rows, shape, self.k) <= self.most_gib

    def over(self, rows: int, what: str, shape: Shape) -> str:
        """What to say of a set that does not fit."""
        kind = self.settled(rows, shape)
        size, limit = gib(kind, rows, shape, self.k), f"trainer.stored_rows_gib={self.most_gib:g}"
        return f"{rows:,} answer rows of the {what} are {size:.3g} GiB as {kind}, over {limit}"

    def refusal(self, rows: int, what: str, shape: Shape) -> str:
        """The same as an error, with the choices."""
        kind, kinds = self.settled(rows, shape), (*EXACT, *ROUGH_ROWS) if self.rough else EXACT
        sizes = {other: gib(other, rows, shape, self.k) for other in (kind, *kinds)}
        fitting = [f"{other} ({size:.3g} GiB)" for other, size in sizes.items() if size <= self.most_gib]
        why, auto = "trainer.stored_rows_over=refuse", ""
        if self.kind in ROUGH_ROWS:
            why, auto = "rows that are computed when needed would not be rounded", "trainer.stored_rows=auto with "
        return (
            f"{self.over(rows, what, shape)}, and {why}. Give "
            + (f"trainer.stored_rows={' or '.join(fitting)}; or " if fitting else "")
            + f"trainer.stored_rows_gib={math.ceil(100 * sizes[kind]) / 100:g}; or "
            + f"{auto}trainer.stored_rows_over=live: they are computed in every step"
        )


def gib(kind: str, rows: int, shape: Shape, k: int = 0) -> float:
    """Size of the rows of one member in GiB. Of topk each token takes an id and a log-probability, and the row its
    residual, 4 bytes each."""
    sizes = {
        "fp32": 4 * shape.vocabulary, "fp16": 2 * shape.vocabulary, "hidden": shape.bytes * shape.hidden,
        "topk": 8 * min(k + 1, shape.vocabulary) + 4,
    }  # fmt: skip
    return rows * sizes[kind] / 2**30


def budget(cfg: TrainerConfig, rough: bool) -> Budget:
    """As trainer.stored_rows… say; ``rough``: for rows that may be rounded, none but the target's. Those are stored or
    refused: whether they fit must not change what is trained."""
    kind = "auto" if cfg.stored_rows in ROUGH_ROWS and not rough else cfg.stored_rows
    refuse = cfg.stored_rows_over == "refuse" or kind in ROUGH_ROWS
    return Budget(kind, cfg.stored_rows_k, cfg.stored_rows_gib, rough, refuse)
