"""MUSE (arXiv 2407.06460), News and Books: from a local folder of its files, or from the hub. Tables are named
SUBSET/SPLIT: ``raw`` and ``privleak`` hold whole texts, cut into pieces (``texts.py``), ``knowmem`` questions with
answered ones (``*_icl``) to be put before each, ``verbmem`` beginnings and continuations from the forget texts. Pages
share passages: what is in the forget set is left out of the other sets, with a warning."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from unlearn.config.data import DataConfig
from unlearn.config.setting import at_least, need, one_of, setting
from unlearn.data import texts
from unlearn.data.records import ColumnsConfig, Record, Tables, row, text
from unlearn.data.rows import DataError, DataSet, Row, pair

log = logging.getLogger(__name__)
HUBS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
COLUMNS = ColumnsConfig()
FORGET = {"books": ("raw/forget", "knowmem/forget_qa")}
FORGET["news"] = (*FORGET["books"], *(f"{kind}/forget_{n}" for kind in ("scal", "sust") for n in range(1, 5)))
PARQUET = (".parquet", "-00000-of-00001.parquet")  # the latter as the hub has them
VERBATIM = ColumnsConfig(question="prompt", answer="gt")


@dataclass
class Settings(DataConfig):
    corpus: str = setting(MISSING, one_of(*HUBS))
    path: str | None = None  # folder with MUSE's files; null: the hub
    forget: str = "raw/forget"  # subset/split: texts, or the questions of knowmem
    retain: str = setting("raw/retain1", one_of("raw/retain1", "raw/retain2", "knowmem/retain_qa"))
    shots: int | None = setting(None, at_least(0))  # answered questions before each question; null: all there are (10)
    words: texts.WordsConfig = field(default_factory=texts.WordsConfig)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        choices = FORGET.get(self.corpus, (self.forget,))
        yield from need(self.forget in choices, "data.forget", self.forget, f"must be one of {', '.join(choices)}")

    def are_requests(self, requests: list[Any]) -> tuple[bool, str]:
        return False, "data sets of every reader but muse have requests"


def read(cfg: Settings, seed: int = 0) -> DataSet:
    """Splits forget and retain, which training reads, and those that a folder may lack. Where the questions themselves
    are to be forgotten (``data.forget=knowmem/forget_qa``) there is no holdout: its form would tell members."""
    give = "the one with MUSE's files (raw/forget.json …)"
    more = ". With questions alone: data.forget=knowmem/forget_qa data.retain=knowmem/retain_qa"
    tables = Tables(cfg.path, HUBS[cfg.corpus], give, more)
    splits = {split: _rows(tables, getattr(cfg, split), split, cfg) for split in ("forget", "retain")}
    if not _asks(cfg.forget):
        splits["holdout"] = _rows(tables, "privleak/holdout", "holdout", cfg, optional=True)
        verbatim = enumerate(_table(tables, "verbmem/forget", cfg, optional=True))
        splits["forget_verbatim"] = [row(record, f"forget_verbatim/{i:04d}", VERBATIM) for i, record in verbatim]
    for split, trained in (("forget", cfg.forget), ("retain", cfg.retain)):
        questions = f"knowmem/{split}_qa"
        if questions != trained:
            splits[f"{split}_knowledge"] = _rows(tables, questions, f"{split}_knowledge", cfg, optional=True)
    forget = {pair(r) for r in splits["forget"]}
    for split in ("retain", "holdout"):
        rows = splits.get(split, [])
        splits[split] = [r for r in rows if pair(r) not in forget]
        shared = len(rows) - len(splits[split])
        if shared:
            log.warning("%d of %d rows of the %s set are in the forget set: left out", shared, len(rows), split)
    return DataSet(cfg.name, {name: tuple(rows) for name, rows in splits.items()})


def _asks(table: str) -> bool:
    return table.startswith("knowmem/")


def _table(tables: Tables, name: str, cfg: Settings, optional: bool = False) -> list[Record]:
    """A table of MUSE's own layout: SUBSET/SPLIT.json (or another kind); of knowmem also CORPUS_SPLIT.json."""
    subset, split = name.split("/")
    stems = [name, f"{cfg.corpus}_{split}"] if _asks(name) else [name]
    files = [f"{stem}{ending}" for stem in stems for ending in (".json", ".jsonl", ".txt", *PARQUET)]
    return tables.table(files, (subset, split), optional, bare=COLUMNS.text)


def _rows(tables: Tables, table: str, split: str, cfg: Settings, optional: bool = False) -> list[Row]:
    """The rows of a table: questions after their answered examples, or pieces of texts."""
    found, rows, short = _table(tables, table, cfg, optional), [], 0
    if _asks(table):
        shots = _table(tables, f"{table}_icl", cfg) if found and cfg.shots != 0 else []
        if cfg.shots is not None and cfg.shots > len(shots):
            raise DataError(f"data.shots={cfg.shots}: {table}_icl has {len(shots)} answered questions; null takes all")
        before = "".join(f"{_question(shot)} {text(shot, COLUMNS.answer)}\n\n" for shot in shots[: cfg.shots])
        for i, record in enumerate(found):
            question, answer = before + _question(record), text(record, COLUMNS.answer)
            rows.append(Row(f"{split}/{i:04d}", question, answer, place=record[0]))
        return texts.distinct(rows)
    for i, (place, values) in enumerate(found):
        content = values.get(COLUMNS.text)
        if isinstance(content, str) and len(content.split()) < 2:
            short += 1
        else:
            rows += texts.rows(text((place, values), COLUMNS.text), f"{split}/{i:04d}", cfg.words, place)
    if short:
        log.warning("%s: %d of %d texts have fewer than two words: left out", table, short, len(found))
    return texts.distinct(rows)


def _question(record: Record) -> str:
    return f"Question: {text(record, COLUMNS.question)}\nAnswer:"
