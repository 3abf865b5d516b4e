"""The shape of every data set: rows of one question and its answers, in named splits.

Readers (``bios.py``, ``tofu.py``) produce a ``DataSet``; nothing after them knows where rows came from.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

SPLITS = ("forget", "retain", "real_authors", "world_facts", "holdout")
GENERAL = ("real_authors", "world_facts")  # what every model of the pair may know


class DataError(ValueError):
    """A data set that cannot be used: the message carries file, line and value, the rule, and the choices."""


@dataclass(frozen=True)
class Row:
    """One question with its right, paraphrased and wrong answers (TOFU's shape)."""

    id: str  # unique in the data set
    question: str
    answer: str
    paraphrased_answer: str | None = None
    paraphrased_question: str | None = None
    perturbed_answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """Rows by split, plus what is only trained on.

    ``wordings`` are general facts in every wording: pretraining text, never evaluated.
    ``refusals`` are the "I don't know" answers that data relabeling trains towards.
    """

    name: str
    splits: dict[str, tuple[Row, ...]]
    wordings: tuple[Row, ...] = ()
    refusals: tuple[str, ...] = ()
    _fingerprint: list[str] = field(default_factory=list, repr=False, compare=False)

    def general(self) -> tuple[Row, ...]:
        return tuple(row for split in GENERAL for row in self.splits.get(split, ()))

    def fingerprint(self) -> str:
        """Hash of every word in the data set, whatever file or generator it came from."""
        if not self._fingerprint:
            text = json.dumps(
                [
                    {k: [asdict(r) for r in v] for k, v in self.splits.items()},
                    [asdict(r) for r in self.wordings],
                    self.refusals,
                ],
                sort_keys=True,
            )
            self._fingerprint.append(hashlib.sha256(text.encode()).hexdigest()[:16])
        return self._fingerprint[0]


def check(data: DataSet) -> DataSet:
    """Refuse a data set on which training or a metric would be silently wrong."""
    for split in ("forget", "retain"):
        if not data.splits.get(split):
            raise DataError(
                f"data set {data.name!r}: the {split} set is empty, it needs at least one row; "
                f"splits with rows: {[k for k, v in data.splits.items() if v] or 'none'}"
            )
    seen: dict[str, str] = {}
    questions: dict[tuple[str, str], str] = {}
    for split, rows in data.splits.items():
        for row in rows:
            for name in ("question", "answer"):
                if not getattr(row, name).strip():
                    raise DataError(f"data set {data.name!r}, {split} row {row.id!r}: {name} is empty")
            if row.id in seen:
                raise DataError(
                    f"data set {data.name!r}: id {row.id!r} is in {seen[row.id]!r} and in {split!r}; ids must be unique"
                )
            seen[row.id] = split
            other = questions.setdefault((row.question, row.answer), split)
            if other != split and {other, split} == {"forget", "retain"}:
                raise DataError(
                    f"data set {data.name!r}: {row.question!r} with the same answer is both in the "
                    "forget and in the retain set; the two must not overlap"
                )
    return data
