"""TOFU (arXiv 2401.06121) from a local folder of its files (JSON lines or arrays, .json or .jsonl), or from the hub.

The files are what ``locuslab/TOFU`` holds. ``idontknow.jsonl`` is plain text in spite of its name, and
``forgetXX_perturbed`` has the same questions in the same order as ``forgetXX``; both facts are checked.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearn.config.data import DataConfig
from unlearn.config.setting import at_least, one_of, setting
from unlearn.data.records import WHOLE, ColumnsConfig, Record, Tables, lines, records, row
from unlearn.data.rows import GENERAL, DataError, DataSet, Row, divide, pair

log = logging.getLogger(__name__)
HUB = "locuslab/TOFU"
PER_AUTHOR = 20  # questions, one author after the other
REFUSALS = "idontknow.jsonl"
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
HOLDOUT = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}
RETAIN_EVALUATED = "retain_perturbed"  # rows 0 … 399 of the full set, with paraphrased and wrong answers


@dataclass
class Settings(DataConfig):
    path: str | None = None  # folder with TOFU's files; null: the hub
    forget: str = setting("forget01", one_of(*RETAIN))
    retain_rows: int | None = setting(None, at_least(1))  # the first n rows of the retain set; null: all
    refusals: str | None = None  # file of plain lines; null: idontknow.jsonl where there is one

    def are_requests(self, requests: list[Any]) -> tuple[bool, str]:
        rule = f"each must be one of {', '.join(RETAIN)}, or a file of questions and answers"
        return all(isinstance(name, str) and name for name in requests), rule


def read(cfg: Settings, seed: int = 0) -> DataSet:
    """Forget and retain sets with their perturbed answers, real authors, world facts, holdout and refusals. The retain
    set is evaluated on the rows of ``retain_perturbed``, also where the retain file lacks some, but not on those that
    ``retain_rows`` cuts off. With requests ``forget`` is the largest forget split that one names (a smaller one is part
    of it), and rows of files that others name leave the retain set."""
    tables = Tables(cfg.path, HUB, "the folder with TOFU's files (forget01.json …)")
    forget = cfg.forget
    if cfg.requests is not None:
        forget = max([name for name in cfg.requests if name in RETAIN], default=forget)
    perturbed = {pair(r): r for r in _rows(tables, RETAIN_EVALUATED, RETAIN_EVALUATED, True)}
    # Retain rows with paraphrased and wrong answers where TOFU has them: training reads question and answer alone.
    whole = []
    for plain in _rows(tables, RETAIN[forget], "retain"):
        other = perturbed.pop(pair(plain), None)
        whole.append(replace(plain, **{name: getattr(other, name) for name in WHOLE}) if other else plain)
    splits = {
        "forget": _rows(tables, f"{forget}_perturbed", "forget", True),
        "retain": whole[: cfg.retain_rows],
        "real_authors": _rows(tables, "real_authors_perturbed", "real_authors", True),
        "world_facts": _rows(tables, "world_facts_perturbed", "world_facts", True),
        "holdout": _rows(tables, HOLDOUT[forget], "holdout", optional=True),
    }
    same, rule = _rows(tables, forget, "plain"), f"{forget} and {forget}_perturbed hold different questions or answers"
    if len(same) != len(splits["forget"]):
        raise DataError(f"{rule}; they must be the same rows, and there are {len(same)} and {len(splits['forget'])}")
    for one, other in zip(same, splits["forget"], strict=True):
        if pair(one) != pair(other):
            where = f"in the same order, and {one.place} has {one.question!r}"
            raise DataError(f"{other.place}: {rule}; they must be the same rows {where}")
    sequence = None
    if cfg.requests is not None:
        rows, named = _requested(tables, splits["retain"], splits["forget"], forget, cfg.requests)
        perturbed = {key: r for key, r in perturbed.items() if key not in {pair(r) for r in rows}}
        divided, sequence = divide(rows, named, cfg)
        splits |= divided
    if perturbed:
        splits["retain_untrained"] = list(perturbed.values())
    file = tables.file(REFUSALS) if cfg.refusals is None else Path(cfg.refusals)
    if file is None and cfg.path is None:
        log.warning("%s gives no %s: for refusals, five general ones are taken, or data.refusals=FILE", HUB, REFUSALS)
    refusals = () if file is None else tuple(lines(file))
    return DataSet(f"tofu-{forget}", {k: tuple(v) for k, v in splits.items()}, refusals=refusals, sequence=sequence)


def _requested(
    tables: Tables, retain: list[Row], forget: list[Row], largest: str, requests: list[str]
) -> tuple[list[Row], list[list[Row]]]:
    """All rows that may be asked for, in TOFU's own order, and those of each request."""
    known = {pair(r): r for r in (*retain, *forget)}
    named, before = [], set()
    for n, name in enumerate(requests, 1):
        if name in RETAIN:
            plain = _rows(tables, name, "plain")
            keys = [pair(r) for r in plain if pair(r) not in before]
            strange = next((r for r in plain if pair(r) not in known), None)
            if strange is not None:
                raise DataError(f"data.requests: {strange.place}: {name} is a part of {largest}, which lacks this row")
        else:
            if not Path(name).is_file():
                raise DataError(f"data.requests: {name!r}: must be one of {', '.join(RETAIN)}, or a file")
            own = _numbered(records(Path(name)), f"named/{n}")
            known |= {pair(r): r for r in own if pair(r) not in known}
            keys = [pair(r) for r in own]
        before.update(keys)
        named.append([known[key] for key in dict.fromkeys(keys)])
    return list(known.values()), named


def _rows(tables: Tables, name: str, split: str, perturbed: bool = False, optional: bool = False) -> list[Row]:
    """The rows of a table; on the hub each is a configuration with one split."""
    files = f"{name}.json", f"{name}.jsonl", f"holdout/{name}.array.json", f"{name}.parquet"
    found = _numbered(tables.table(files, (name, "train"), optional), split)
    without = [r for r in found if perturbed and not r.perturbed_answers]
    if without:
        raise DataError(f"{without[0].place}: 'perturbed_answer' is missing; every row of this file needs one or more")
    return found


def _numbered(table: list[Record], split: str) -> list[Row]:
    found = [row(record, f"{split}/{i:04d}", ColumnsConfig()) for i, record in enumerate(table)]
    if split in GENERAL:  # not in blocks of one author
        return found
    return [replace(r, group=f"{split}/{i // PER_AUTHOR:03d}") for i, r in enumerate(found)]
