"""TOFU (arXiv 2401.06121) from a local folder of its files (JSON lines or arrays, .json or .jsonl), or from the hub.

The files are what ``locuslab/TOFU`` holds. ``idontknow.jsonl`` is plain text in spite of its name, and
``forgetXX_perturbed`` has the same questions in the same order as ``forgetXX``; both facts are checked.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from unlearn.config.data import ColumnsConfig
from unlearn.data.records import Hub, Record, find, lines, listing, records, row
from unlearn.data.requested import Asked, divide
from unlearn.data.rows import DataError, DataSet, Row, pair

log = logging.getLogger(__name__)
HUB = "locuslab/TOFU"
PER_AUTHOR = 20  # questions, one author after the other
REFUSALS = "idontknow.jsonl"
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
HOLDOUT = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}
RETAIN_EVALUATED = "retain_perturbed"  # rows 0 … 399 of the full set, with paraphrased and wrong answers


def read(
    path: str | None, forget: str, retain_rows: int | None, refusals: str | None = None, asked: Asked | None = None
) -> DataSet:
    """Forget and retain sets with their perturbed answers, real authors, world facts, holdout and refusals.

    With requests (``asked``) ``forget`` is the largest forget split that one of them names, and the rows of files that
    others name are taken out of the retain set. A forget split holds those that are smaller: it asks for what is left.

    The retain set is evaluated on the rows of ``retain_perturbed``, also where the retain file lacks some; those that
    ``retain_rows`` cuts off are not: a target that is trained on the data set would not know them.
    """
    source = _Folder(path) if path is not None else _Hub()
    if asked is not None:
        forget = max([name for name in asked.requests if name in RETAIN], default=forget)
    perturbed = {pair(r): r for r in _rows(source.table(RETAIN_EVALUATED), RETAIN_EVALUATED, True)}
    # Retain rows with paraphrased and wrong answers where TOFU has them: training reads question and answer alone.
    whole = [_with_alternatives(r, perturbed.pop(pair(r), None)) for r in _rows(source.table(RETAIN[forget]), "retain")]
    splits = {
        "forget": _rows(source.table(f"{forget}_perturbed"), "forget", True),
        "retain": whole[:retain_rows],
        "real_authors": _rows(source.table("real_authors_perturbed"), "real_authors", True),
        "world_facts": _rows(source.table("world_facts_perturbed"), "world_facts", True),
        "holdout": _rows(source.table(HOLDOUT[forget], optional=True), "holdout"),
    }
    _same_questions(_rows(source.table(forget), "plain"), splits["forget"], forget)
    sequence = None
    if asked is not None:
        rows, named = _requested(source, splits["retain"], splits["forget"], forget, asked)
        perturbed = {key: r for key, r in perturbed.items() if key not in {pair(r) for r in rows}}
        divided, sequence = divide(rows, named, asked)
        splits |= divided
    if perturbed:
        splits["retain_untrained"] = list(perturbed.values())
    said = source.refusals() if refusals is None else lines(Path(refusals))
    return DataSet(f"tofu-{forget}", {k: tuple(v) for k, v in splits.items()}, refusals=tuple(said), sequence=sequence)


def _requested(
    source: _Folder | _Hub, retain: list[Row], forget: list[Row], largest: str, asked: Asked
) -> tuple[list[Row], list[list[Row]]]:
    """All rows that may be asked for, in TOFU's own order, and those of each request."""
    known = {pair(r): r for r in (*retain, *forget)}
    named, before = [], set()
    for n, name in enumerate(asked.requests, 1):
        if name in RETAIN:
            plain = _rows(source.table(name), "plain")
            keys = [pair(r) for r in plain if pair(r) not in before]
            strange = next((r for r in plain if pair(r) not in known), None)
            if strange is not None:
                raise DataError(f"data.requests: {strange.place}: {name} is a part of {largest}, which lacks this row")
        else:
            if not Path(name).is_file():
                raise DataError(f"data.requests: {name!r}: must be one of {', '.join(RETAIN)}, or a file")
            own = _rows(records(Path(name)), f"named/{n}")
            known |= {pair(r): r for r in own if pair(r) not in known}
            keys = [pair(r) for r in own]
        before.update(keys)
        named.append([known[key] for key in dict.fromkeys(keys)])
    return list(known.values()), named


def _rows(table: list[Record], split: str, perturbed: bool = False) -> list[Row]:
    found = [row(record, f"{split}/{i:04d}", ColumnsConfig()) for i, record in enumerate(table)]
    without = [r for r in found if perturbed and not r.perturbed_answers]
    if without:
        raise DataError(
            f"{without[0].place}: 'perturbed_answer' is missing; every row of this file needs wrong answers"
        )
    return [replace(r, group=f"{split}/{i // PER_AUTHOR:03d}") for i, r in enumerate(found)]


def _with_alternatives(row: Row, other: Row | None) -> Row:
    if other is None:
        return row
    return replace(
        row,
        paraphrased_answer=other.paraphrased_answer,
        paraphrased_question=other.paraphrased_question,
        perturbed_answers=other.perturbed_answers,
    )


def _same_questions(plain: list[Row], perturbed: list[Row], forget: str) -> None:
    rule = f"{forget} and {forget}_perturbed hold different questions or answers; they must be the same rows"
    if len(plain) != len(perturbed):
        raise DataError(f"{rule}, and there are {len(plain)} and {len(perturbed)}")
    for one, other in zip(plain, perturbed, strict=True):
        if pair(one) != pair(other):
            raise DataError(f"{other.place}: {rule} in the same order, and {one.place} has {one.question!r}")


class _Folder:
    def __init__(self, path: str):
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(f"data.path={path!r}: no such folder; give the folder with TOFU's files (forget01.json …)")

    def table(self, name: str, optional: bool = False) -> list[Record]:
        file = find(self.path, f"{name}.json", f"{name}.jsonl", f"holdout/{name}.array.json")
        if file is not None:
            return records(file)
        if optional:
            return []
        raise DataError(
            f"data.path={str(self.path)!r}: {name}.json is missing (or .jsonl); the folder has {listing(self.path)}"
        )

    def refusals(self) -> list[str]:
        file = find(self.path, REFUSALS)
        return lines(file) if file is not None else []


class _Hub:
    """The same tables from the hub, where each is a configuration with one split."""

    def table(self, name: str, optional: bool = False) -> list[Record]:
        return Hub(HUB).table(name, "train", optional)

    def refusals(self) -> list[str]:
        file = Hub(HUB).file(REFUSALS)
        if file is None:
            log.warning("%s gives no %s; objectives that train towards refusals need data.refusals=FILE", HUB, REFUSALS)
            return []
        return lines(file)
