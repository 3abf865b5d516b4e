"""A user's own data set: files of questions and answers, or of texts that are to be continued.

``.jsonl`` and ``.json`` files hold objects, one per line or in one array, ``.csv`` and ``.parquet`` files rows; a
``.txt`` file is one text. Metrics that need what a data set does not have (wrong answers, a holdout …) are absent.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unlearn.config.data import DataConfig
from unlearn.config.setting import SHARE, Bound, need, setting
from unlearn.data import texts
from unlearn.data.records import KINDS, OPTIONAL, WHOLE, ColumnsConfig, Record, has, lines, listing, records, row, text
from unlearn.data.rows import NEIGHBOURS, DataError, DataSet, Requested, Row, divide, pair

# the splits that have a key in the config
OWN = ("forget", "retain", NEIGHBOURS, "real_authors", "world_facts", "holdout")


def is_files(value: Any) -> bool:
    return value is None or all(isinstance(v, str) and v for v in (value if isinstance(value, list) else [value]))


OWN_FILES = Bound(is_files, "must be a file, a list of files [A,B], or null", whole=True)


@dataclass
class Settings(DataConfig):
    forget: Any = setting(None, OWN_FILES)  # .jsonl, .json: questions and answers, or texts; .txt: one text
    retain: Any = setting(None, OWN_FILES)
    neighbours: Any = setting(None, OWN_FILES)  # what lies beside the forgotten, and must stay
    neighbours_trained: float = setting(0.0, SHARE)  # share of them that is trained on as retain data; the rest is not
    real_authors: Any = setting(None, OWN_FILES)
    world_facts: Any = setting(None, OWN_FILES)
    holdout: Any = setting(None, OWN_FILES)  # what no model has seen, for membership inference
    refusals: Any = setting(None, OWN_FILES)  # plain lines; null: five general ones
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    words: texts.WordsConfig = field(default_factory=texts.WordsConfig)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.nothing_else(forget="null")
        share, rule = self.neighbours_trained, "is a share of data.neighbours, and there are none"
        yield from need(not share or bool(self.neighbours), "data.neighbours_trained", share, rule)

    def are_requests(self, requests: list[Any]) -> tuple[bool, str]:
        fit = all(request is not None and request != [] and is_files(request) for request in requests)
        return fit, "each must be a file, or a list of files"


def read(cfg: Settings, seed: int = 0) -> DataSet:
    """The rows of every file that the config names; what retain files share with requests is to be forgotten."""
    named = {split: _files(getattr(cfg, split), f"data.{split}") for split in OWN}
    found = {split: [r for file in files for r in _records(file, cfg.columns)] for split, files in named.items()}
    requests = [_files(request, f"data.requests[{n}]") for n, request in enumerate(cfg.requests or ())]
    asked = {str(file): _records(file, cfg.columns) for files in requests for file in files}
    for split in ("forget", "retain") if cfg.requests is None else ("retain",):
        if not found[split]:
            raise DataError(f"data.{split}: needs a file, e.g. data.{split}={split}.jsonl (questions) or {split}.txt")
    given = [values for table in (*found.values(), *asked.values()) for _, values in table]
    for name in OPTIONAL:  # a column that may be missing is one that a wrong name would lose unnoticed
        column = getattr(cfg.columns, name)
        if column != getattr(ColumnsConfig(), name) and not any(has(values, column) for values in given):
            known = dict.fromkeys(key for values in given for key in values)
            raise DataError(f"data.columns.{name}={column!r}: no file has this column; columns: {', '.join(known)}")
    splits, sequence = {split: _rows(table, split, cfg) for split, table in found.items()}, None
    trained, splits[NEIGHBOURS] = divided_neighbours(splits[NEIGHBOURS], cfg.neighbours_trained)
    splits["retain"] += trained
    refusals = tuple(line for file in _files(cfg.refusals, "data.refusals") for line in lines(file))
    if cfg.requests is not None:
        del splits["forget"]
        divided, sequence = _requested(splits.pop("retain"), requests, asked, cfg)
        splits = divided | splits
    return DataSet(cfg.name, splits, refusals=refusals, sequence=sequence)


def divided_neighbours(rows: tuple[Row, ...], share: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Those that are trained on as retain data, and the rest. What a row says decides: no order, no file, no seed."""
    order = sorted(rows, key=lambda own: hashlib.sha256(repr(pair(own)).encode()).digest())
    trained = order[: round(share * len(rows))]
    return tuple(trained), tuple(own for own in rows if own not in trained)


def _requested(
    retain: tuple[Row, ...], requests: list[list[Path]], asked: dict[str, list[Record]], cfg: Settings
) -> tuple[dict[str, tuple[Row, ...]], Requested]:
    """Rows of retain files and requests, each once, and their division. Files count in the order of their names, so
    that the order of the requests changes nothing but which comes first."""
    by_file: dict[str, list[Row]] = {name: [] for name in sorted(asked)}
    file_of = {place: name for name in by_file for place, _ in asked[name]}
    for own in _rows([record for name in by_file for record in asked[name]], "named", cfg, distinct=False):
        by_file[file_of[own.place]].append(own)
    known = {pair(own): own for own in retain}
    for own in (own for rows in by_file.values() for own in rows):
        # a request's own row, with its wrong answers, instead of the one that was retained
        same = known.get(pair(own))
        known[pair(own)] = own if same is None else replace(own, id=same.id)
    named = [texts.distinct(known[pair(own)] for file in files for own in by_file[str(file)]) for files in requests]
    return divide(list(known.values()), named, cfg)


def _files(named: Any, key: str) -> list[Path]:
    """The files of one key of the config; all must be there."""
    found = [Path(name) for name in ([] if named is None else [named] if isinstance(named, str) else named)]
    for file in found:
        if file.is_dir():
            raise DataError(f"{key}={str(file)!r}: is a folder; name its files: {listing(file)}")
        if not file.is_file():
            folder = file.parent
            beside = f"{str(folder.resolve())!r} has {listing(folder)}" if folder.is_dir() else "nor such a folder"
            raise DataError(f"{key}={str(file)!r}: no such file; {beside}")
    return found


def _records(file: Path, columns: ColumnsConfig) -> list[Record]:
    """The records of one file, all with the same of the optional columns."""
    if file.suffix not in KINDS:
        rule = "must be one of .jsonl, .json, .csv, .parquet (rows) or .txt (a text)"
        raise DataError(f"{file}: {file.suffix or 'no ending'}: {rule}")
    found = records(file, bare=columns.text)
    if file.suffix == ".txt":
        return found if columns.id is None else [(str(file), {columns.id: file.name} | found[0][1])]
    for name in WHOLE:
        column = getattr(columns, name)
        without = [place for place, values in found if not has(values, column)]
        if without and len(without) < len(found):
            rule = f"{len(found) - len(without)} of {len(found)} rows have it: give it to all rows or to none"
            raise DataError(f"{without[0]}: {column!r} is missing, and {rule}")
    return found


def _rows(found: list[Record], split: str, cfg: Settings, distinct: bool = True) -> tuple[Row, ...]:
    rows, cut, columns = [], [], cfg.columns
    for i, record in enumerate(found):
        place, values = record
        number = f"{i:04d}" if columns.id is None else values.get(columns.id)
        if not isinstance(number, str | int) or isinstance(number, bool) or not str(number).strip():
            raise DataError(f"{place}: needs an id in {columns.id!r}, a text or a whole number, found {number!r}")
        id = f"{split}/{number}"
        if columns.question in values:
            rows.append(row(record, id, columns))
        elif columns.text not in values:
            needs = f"needs {columns.question!r} and {columns.answer!r}, or {columns.text!r}"
            names = f"{', '.join(values) or 'none'}; name them, e.g. data.columns.question=NAME"
            raise DataError(f"{place}: {needs}; it has the columns {names}")
        elif cfg.template.prompt != "{question}":
            asks = f"data.template.prompt={cfg.template.prompt!r} would ask; take template=raw"
            raise DataError(f"{place}: a text is continued, not asked, and {asks}")
        else:
            pieces = texts.rows(text(record, columns.text), id, cfg.words, place)
            if not pieces:
                rule = "a text needs two words at least, a beginning and what follows"
                raise DataError(f"{place}: {rule}; found {values[columns.text]!r}")
            cut += pieces
    return tuple(rows + (texts.distinct(cut) if distinct else cut))
