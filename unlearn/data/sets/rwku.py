"""RWKU (arXiv 2406.10890), 200 famous people whom pretrained models know: from a folder of its files, or from the hub.

Trained on are texts about the people, cut into pieces; RWKU's probes are only measured: ``forget_level1`` (a blank to
fill), ``forget_level2`` (questions), ``forget_level3`` (attacks), ``neighbours`` (both of its levels), and its part of
TriviaQA as ``world_facts``. Prompts are those of RWKU's ``eval_forget.py`` and ``eval_neighbor.py``, with "Answer:"
where the user's turn ends, not where the model's begins; the fact (``Row.key``) is the answer.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.config.data import DataConfig
from unlearn.config.setting import SHARE, at_least, need, one_of, setting
from unlearn.data import texts
from unlearn.data.records import Record, Tables, lines, text
from unlearn.data.rows import NEIGHBOURS, DataError, DataSet, Row, divide, pair
from unlearn.data.sets.jsonl import divided_neighbours

HUB = "jinzhuoran/RWKU"
# Texts by the name of their file, and what the hub calls them: of Wikipedia, by Llama 3 8B, by Phi 3 mini.
CORPORA = {
    "passage": "train_original_passage", "positive": "train_positive_llama3", "positive_phi": "train_positive_phi3",
}  # fmt: skip
ATTACKED = {"affirmative suffix": "{}\nQuestion: {}", "incontext learning": "{}\n{}\nAnswer:"}  # level 3, by type
ASKED = "{}\nQuestion: {}\nAnswer:"


@dataclass
class Settings(DataConfig):
    path: str | None = None  # folder with RWKU's files: its All/, or that of one target; null: the hub
    targets: list[str] = setting([])  # who is to be forgotten, all in one run: names as RWKU writes them
    corpus: str = setting("passage", one_of(*CORPORA))
    others: int | None = setting(None, at_least(1))  # of how many other people texts are retained; null: all
    neighbours_trained: float = setting(0.0, SHARE)  # share of the neighbours that is trained on as retain data
    blank: str = "Please complete the blank in the following question."
    brief: str = "Please briefly answer the following question."
    words: texts.WordsConfig = field(default_factory=texts.WordsConfig)
    refusals: str | None = None  # file of plain lines; null: five general ones

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.nothing_else(targets="[]")
        given = bool(self.targets) and len(set(self.targets)) == len(self.targets)
        rule = "must be different names, e.g. data.targets=[Stephen King]"
        yield from need(given or self.requests is not None, "data.targets", self.targets, rule)

    def are_requests(self, requests: list[Any]) -> tuple[bool, str]:
        fit = all(bool(names) and all(isinstance(n, str) and n for n in names) for names in map(_names, requests))
        return fit, "each must be a name, or a list of names"

    def protocol(self, begun: int) -> str:
        chosen = self.request if isinstance(self.request, list) else [self.request]
        numbers = chosen if chosen != [None] else range(1, len(self.requests or [0]) + 1)
        people = [name for n in numbers for name in _names((self.requests or [self.targets])[n - 1])]
        which = "one target" if len(people) == 1 else f"a batch of {len(people)} targets"
        turn = f" (request {', '.join(map(str, numbers))} of {len(self.requests)})" if self.requests else ""
        return f"{which}{turn}, {f'after {begun} earlier runs' if begun else 'fresh model'}: {', '.join(people)}"


def read(cfg: Settings, seed: int = 0) -> DataSet:
    """Splits forget and retain of texts, which training reads, and the probes about those who are to be forgotten: with
    requests those whose request is being unlearnt; the neighbours are everybody's who is asked for."""
    tables = Tables(cfg.path, HUB, "the one with RWKU's files, its All/ or that of one target (forget_level1.json …)")
    named = [_names(request) for request in cfg.requests or [cfg.targets]]
    about = _texts(tables, cfg, [name for names in named for name in names])
    rows = [row for own in about.values() for row in own]
    if cfg.requests is None:
        wanted = {id(row) for name in cfg.targets for row in about[name]}
        splits = {"forget": [r for r in rows if id(r) in wanted], "retain": [r for r in rows if id(r) not in wanted]}
        people, sequence = cfg.targets, None
    else:
        splits, sequence = divide(rows, [[row for name in names for row in about[name]] for names in named], cfg)
        people = [name for n in sequence.asked for name in named[n - 1]]
    for level in (1, 2, 3):
        splits[f"forget_level{level}"] = _probes(tables, cfg, f"forget_level{level}", people)
    everyone = [name for names in named for name in names]
    beside = [row for level in (1, 2) for row in _probes(tables, cfg, f"neighbor_level{level}", everyone)]
    trained, splits[NEIGHBOURS] = divided_neighbours(tuple(texts.distinct(beside)), cfg.neighbours_trained)
    splits["retain"] = (*splits["retain"], *trained)
    splits["world_facts"] = _facts(tables, cfg, everyone)
    refusals = () if cfg.refusals is None else tuple(lines(Path(cfg.refusals)))
    return DataSet(cfg.name, {k: tuple(v) for k, v in splits.items()}, refusals=refusals, sequence=sequence)


def _table(tables: Tables, name: str, config: str, split: str, optional: bool = False) -> list[Record]:
    files = [f"{folder}{name}{ending}" for ending in (".json", ".jsonl", ".parquet") for folder in ("", "All/")]
    return tables.table(files, (config, split), optional)


def _texts(tables: Tables, cfg: Settings, named: Sequence[str]) -> dict[str, list[Row]]:
    """Pieces, each once, of the texts about each person: those who are named, then ``cfg.others`` of the others."""
    found: dict[str, list[Row]] = {}
    for i, record in enumerate(_table(tables, cfg.corpus, CORPORA[cfg.corpus], "train")):
        pieces = texts.rows(text(record, "text"), f"text/{i:05d}", cfg.words, record[0])
        found.setdefault(text(record, "subject"), []).extend(pieces)
    for name in named:
        if name not in found:
            near = ", ".join(difflib.get_close_matches(name, found, 5)) or ", ".join(list(found)[:5])
            raise DataError(f"data.targets: {name!r}: {cfg.corpus} has no text about them; near it: {near}")
    others = [name for name in found if name not in named][: cfg.others]
    first = {pair(row): (name, row) for name in reversed([*named, *others]) for row in reversed(found[name])}
    return {name: [own for about, own in first.values() if about == name][::-1] for name in (*named, *others)}


def _probes(tables: Tables, cfg: Settings, name: str, people: Sequence[str]) -> list[Row]:
    split = name if name.startswith("forget") else NEIGHBOURS
    level, rows = int(name[-1]), []
    for i, record in enumerate(_table(tables, name, name, "test")):
        subject = text(record, "subject")
        if subject in people:
            form = ATTACKED.get(text(record, "type"), ASKED) if level == 3 else ASKED
            asked = form.format(cfg.blank if level == 1 else cfg.brief, text(record, "query"))
            answer, group = text(record, "answer"), subject if len(people) > 1 else ""
            rows.append(Row(f"{split}/{level}.{i:05d}", asked, answer, place=record[0], group=group, key=(answer,)))
    if split != NEIGHBOURS and not rows:
        raise DataError(f"data.targets: {name} has no question about {', '.join(people)}: nothing would be measured")
    return texts.distinct(rows)


def _facts(tables: Tables, cfg: Settings, people: Sequence[str]) -> list[Row]:
    """Questions of TriviaQA, where a folder has them: every answer that counts is a spelling of the fact."""
    rows = []
    for i, (place, values) in enumerate(_table(tables, "triviaqa", "utility_factuality", "test", optional=True)):
        spellings = values.get("answers")
        if values.get("subject") in people:
            if not isinstance(spellings, list) or not spellings or not all(isinstance(a, str) for a in spellings):
                raise DataError(f"{place}: needs a list of texts in 'answers', found {str(spellings)[:80]!r}")
            asked = ASKED.format(cfg.brief, text((place, values), "question"))
            rows.append(Row(f"world_facts/{i:05d}", asked, spellings[0], place=place, key=tuple(spellings)))
    return texts.distinct(rows)


def _names(request: Any) -> list[Any]:
    return request if isinstance(request, list) else [request]
