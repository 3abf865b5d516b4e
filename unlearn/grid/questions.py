"""The files of ``python -m unlearn.generate model=…``: questions that are asked, answers that are there already.

Whatever is wrong with the call is said from here, without torch; ``asking.py`` has the model.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.config.schema import Config, ConfigError
from unlearn.data.facts import told
from unlearn.data.records import ColumnsConfig, Record, has, lines, records, spellings, text
from unlearn.grid.rules import as_typed, composed
from unlearn.store.files import saving
from unlearn.store.sources import is_folder, local, weight_files

log = logging.getLogger(__name__)
AS_IT_IS = ("pair.tokenizer.kind=pretrained", "pair.target.pretrain.epochs=0", "pair.target.finetune.epochs=0",
            "eval.groups=[]", "eval.retrained=none")  # fmt: skip
TARGET, TOKENIZER = "pair.target", "pair.tokenizer.source"
MARK = "asked"  # the column that tells answers that were got in another way
OWN = ("question", "answer", "prob", MARK)  # what is written of each answer, before what else its row has
SHORT = {f"{TARGET}.source": "model", f"{TARGET}.http.url": "model", f"{TARGET}.http.model": "name",
         TOKENIZER: "tokenizer"}  # fmt: skip


@dataclass(frozen=True)
class Question:
    place: str  # file and line, for messages
    text: str
    key: tuple[str, ...]  # spellings of the fact, where its row names it
    more: dict[str, Any]  # what else its row has

    def is_known(self, answer: str) -> bool:
        """Whether an answer holds the fact, where the row names it: what a model does not know it cannot forget."""
        return not self.key or told(answer, self.key)


@dataclass(frozen=True)
class Call:
    cfg: Config
    overrides: list[str]
    questions: list[Question]
    out: Path

    @property
    def unknown(self) -> Path:
        """Where answers go that do not hold their row's fact."""
        return self.out.with_name(f"{self.out.stem}.unknown.jsonl")


def call(model: Sequence[str], prompts: Path, out: Path, overrides: Sequence[str]) -> Call:
    """Read and check all that needs no model; ``model`` as ``settings`` has it. ``ConfigError``, ``DataError``."""
    overrides = [*AS_IT_IS, *model, *map(as_typed, overrides)]
    cfg = config(overrides)
    if cfg.pair.target.source is None and cfg.pair.target.kind != "http":
        raise ConfigError("model=FOLDER_OR_NAME_OR_URL must be given")
    source = cfg.pair.target.source
    if cfg.pair.target.kind != "http" and is_folder(source):
        try:
            weight_files(local(source))
        except ConfigError as error:
            raise ConfigError(f"model={source!r}: {error}") from None
    found = Call(cfg, overrides, asked(prompts, cfg), out)
    if prompts.resolve() in (out.resolve(), found.unknown.resolve()):
        raise ConfigError(f"out={str(out)!r}: is where prompts= is read from: give another file")
    for file in (out, found.unknown):
        answered(file, None)
    return found


def settings(model: str, name: str | None, tokenizer: str | None) -> list[str]:
    """The settings that ``model=`` stands for; ``name``: that of a model on a server."""
    remote = model.startswith(("http://", "https://"))
    if remote is (name is None):
        rule = "must be given, what the server calls it" if remote else "is for a model on a server, model=http://…"
        raise ConfigError(f"name={name or ''}: {rule}")
    given = {f"{TARGET}.source": model}
    if remote:  # servers mostly call a model as the hub does
        given = {f"{TARGET}.kind": "http", f"{TARGET}.http.url": model, f"{TARGET}.http.model": name}
    source = tokenizer or name
    given |= {} if source is None else {TOKENIZER: source}
    quoted = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in given.items()}
    return [f"{key}='{value}'" for key, value in quoted.items()]  # as Hydra takes any text


def config(overrides: Sequence[str]) -> Config:
    try:
        return composed(overrides)
    except ConfigError as error:
        text = str(error)
        for key, short in SHORT.items():
            text = text.replace(f"{key}=", f"{short}=")
        raise ConfigError(text) from None


def asked(file: Path, cfg: Config) -> list[Question]:
    """The questions of a file, each once."""
    columns = getattr(cfg.data, "columns", None) or ColumnsConfig()
    name = columns.question
    if file.suffix == ".txt":
        found: list[Record] = [(f"{file}, {line[:40]!r}", {name: line}) for line in lines(file)]
    else:
        found = records(file, bare=name)
    once: dict[str, Question] = {}
    for record in found:
        more = {k: v for k, v in record[1].items() if k != name}
        more = {f"given_{k}" if k in ("question", "answer") else k: v for k, v in more.items() if k not in OWN[2:]}
        key = spellings(record, columns.fact) if has(record[1], columns.fact) else ()
        question = text(record, name)
        once.setdefault(question, Question(record[0], question, key, more))
    if again := len(found) - len(once):
        log.warning("%s: questions that are there again and are asked once: %d", file, again)
    if repeated := [question.place for question in once.values() if told(question.text, question.key)]:
        what = "keys that stand in their own question, so that an answer which repeats it counts as known: %d, first %s"
        log.warning(what, len(repeated), repeated[0])
    return list(once.values())


def answered(out: Path, mark: str | None) -> set[str]:
    """The questions that a file has answers to, in the way of ``mark`` (None: in any); a line that a kill tore apart is
    cut off. A file of anything else is left as it is, and refused."""
    if not out.is_file():
        return set()
    *whole, torn = (content := out.read_bytes()).split(b"\n")
    try:
        there = [json.loads(line) for line in whole]
        ours = all(set(OWN) <= set(row) for row in there) and _is_torn(torn)
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise ConfigError(f"out={str(out)!r}: is a file of something else than answers of this command: give another")
    if mark is None:
        return set()
    if any(row[MARK] != mark for row in there):
        rule = "has answers of another model, template or eval.max_new_tokens: give another file, or remove it"
        raise ConfigError(f"out={str(out)!r}: {rule}")
    if torn:
        out.write_bytes(content[: -len(torn)])
    return {row["question"] for row in there}


def _is_torn(line: bytes) -> bool:
    """Whether a last line without its end is part of an answer's; a whole one is somebody else's."""
    try:
        return set(OWN) <= set(json.loads(line))
    except (ValueError, TypeError):
        return b'{"question": '.startswith(line[:13])


def append(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    with saving(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
