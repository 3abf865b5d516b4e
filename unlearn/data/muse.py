"""MUSE (arXiv 2407.06460), News and Books: from a local folder of its files, or from the hub.

Tables are named SUBSET/SPLIT. ``raw`` holds whole texts: forget, retain1 (for unlearning), retain2 (the target knows
it, too), holdout. News has further forget sets, ``scal/forget_1`` … 4 (each contains the one before) and
``sust/forget_1`` … 4 (disjoint). ``knowmem`` holds questions about forget and retain2, with ten answered ones
(``*_icl``) that MUSE puts before each. ``verbmem/forget`` holds beginnings and continuations from the forget texts,
``privleak/holdout`` 100 texts that no model saw, for membership inference.

Texts are cut into pieces (``texts.py``). Pages share passages, so what is in the forget set is left out of the other
sets, with a warning.
"""

from __future__ import annotations

import logging
from pathlib import Path

from unlearn.config.data import ColumnsConfig, MuseConfig
from unlearn.data import texts
from unlearn.data.records import Hub, Record, find, listing, records, row, text, text_of
from unlearn.data.rows import DataError, DataSet, Row, pair

log = logging.getLogger(__name__)
HUBS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
COLUMNS = ColumnsConfig()
VERBATIM = ColumnsConfig(question="prompt", answer="gt")


def read(cfg: MuseConfig) -> DataSet:
    """Splits forget and retain, which training reads; holdout, forget_knowledge, retain_knowledge, forget_verbatim,
    which a folder may lack.

    Where the questions themselves are to be forgotten (``data.forget=knowmem/forget_qa``), there is neither a knowledge
    split of the same questions nor a holdout, whose texts would tell members by their form.
    """
    source = _Folder(cfg.path, cfg.corpus) if cfg.path is not None else _Hub(cfg.corpus)
    forget = _rows(source.table(cfg.forget), cfg.forget, "forget", cfg, source)
    splits = {"forget": forget, "retain": _rows(source.table(cfg.retain), cfg.retain, "retain", cfg, source)}
    if not _asks(cfg.forget):
        holdout = "privleak/holdout"
        splits["holdout"] = _rows(source.table(holdout, optional=True), holdout, "holdout", cfg, source)
        splits["forget_verbatim"] = [
            row(record, f"forget_verbatim/{i:04d}", VERBATIM)
            for i, record in enumerate(source.table("verbmem/forget", optional=True))
        ]
    for split, trained in (("forget", cfg.forget), ("retain", cfg.retain)):
        table, name = f"knowmem/{split}_qa", f"{split}_knowledge"
        if table != trained:
            splits[name] = _rows(source.table(table, optional=True), table, name, cfg, source)
    for split in ("retain", "holdout"):
        splits[split] = _without(forget, splits.get(split, []), split)
    return DataSet(cfg.name, {name: tuple(rows) for name, rows in splits.items()})


def _asks(table: str) -> bool:
    return table.startswith("knowmem/")


def _rows(found: list[Record], table: str, split: str, cfg: MuseConfig, source: _Folder | _Hub) -> list[Row]:
    """The rows of a table: questions after their answered examples, or pieces of texts."""
    if not _asks(table):
        return _pieces(found, table, split, cfg)
    shots = source.table(f"{table}_icl") if found and cfg.shots != 0 else []
    if cfg.shots is not None and cfg.shots > len(shots):
        raise DataError(f"data.shots={cfg.shots}: {table}_icl has {len(shots)} answered questions; null takes all")
    before = "".join(f"{_question(shot)} {text(shot, COLUMNS.answer)}\n\n" for shot in shots[: cfg.shots])
    return texts.distinct(
        Row(f"{split}/{i:04d}", before + _question(record), text(record, COLUMNS.answer), place=record[0])
        for i, record in enumerate(found)
    )


def _question(record: Record) -> str:
    return f"Question: {text(record, COLUMNS.question)}\nAnswer:"


def _pieces(found: list[Record], table: str, split: str, cfg: MuseConfig) -> list[Row]:
    rows, short = [], 0
    for i, (place, values) in enumerate(found):
        content = values.get(COLUMNS.text)
        if isinstance(content, str) and len(content.split()) < 2:
            short += 1
            continue
        rows += texts.rows(text((place, values), COLUMNS.text), f"{split}/{i:04d}", cfg.words, place)
    if short:
        log.warning("%s: %d of %d texts have fewer than two words: left out", table, short, len(found))
    return texts.distinct(rows)


def _without(forget: list[Row], rows: list[Row], split: str) -> list[Row]:
    known = {pair(r) for r in forget}
    kept = [r for r in rows if pair(r) not in known]
    if len(kept) < len(rows):
        log.warning(
            "%d of %d rows of the %s set are in the forget set: left out", len(rows) - len(kept), len(rows), split
        )
    return kept


class _Folder:
    """MUSE's own layout: SUBSET/SPLIT.json (or .jsonl, .txt); of knowmem also CORPUS_SPLIT.json."""

    def __init__(self, path: str, corpus: str):
        self.path, self.corpus = Path(path), corpus
        if not self.path.is_dir():
            raise DataError(f"data.path={path!r}: no such folder; give the one with MUSE's files (raw/forget.json …)")

    def table(self, name: str, optional: bool = False) -> list[Record]:
        split = name.split("/")[1]
        stems = [name, f"{self.corpus}_{split}"] if _asks(name) else [name]
        file = find(self.path, *(f"{stem}{ending}" for stem in stems for ending in (".json", ".jsonl", ".txt")))
        if file is not None and file.suffix == ".txt":
            return [(str(file), {COLUMNS.text: text_of(file)})]
        if file is not None:
            return records(file, bare=COLUMNS.text)
        if optional:
            return []
        raise DataError(
            f"data.path={str(self.path)!r}: {name}.json is missing (or .jsonl, .txt); the folder has "
            f"{listing(self.path)}. With questions alone: data.forget=knowmem/forget_qa data.retain=knowmem/retain_qa"
        )


class _Hub:
    """The same tables from the hub, which has all of them."""

    def __init__(self, corpus: str):
        self.hub = Hub(HUBS[corpus])

    def table(self, name: str, optional: bool = False) -> list[Record]:
        return self.hub.table(*name.split("/"))
