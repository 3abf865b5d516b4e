"""Ask any model before there is a run: a file of questions becomes one of questions, answers and their probabilities.

The model is a pretrained one as it is, or behind a server. ``data.forget=FILE`` takes what is written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from unlearn.config.schema import Config, ConfigError, conf_dir
from unlearn.data.encoding import Encoder, Example, Examples
from unlearn.data.facts import told
from unlearn.data.readers import register
from unlearn.data.records import Record, lines, records, text
from unlearn.data.rows import DataError, DataSet
from unlearn.decoding.generation import Decoding, ends_of, greedy
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.scoring import score
from unlearn.grid.rules import as_typed, parse
from unlearn.models import hub, llama, tokenizers
from unlearn.runs.learner import initialise
from unlearn.runs.workbench import Workbench
from unlearn.store import sources
from unlearn.store.entries import Store
from unlearn.store.files import saving
from unlearn.store.identity import digest, template
from unlearn.store.progress import progress

log = logging.getLogger(__name__)
AS_IT_IS = ("pair.tokenizer.kind=pretrained", "pair.target.pretrain.epochs=0", "pair.target.finetune.epochs=0",
            "eval.groups=[]", "eval.retrained=none")  # fmt: skip
TARGET, ANYTHING = "pair.target", 1_000_000  # tokens, where nobody says what a model takes
PIECE = 16  # questions at a time: what a kill loses
MARK = "asked"
SHORT = {f"{TARGET}.source": "model", f"{TARGET}.http.url": "model", f"{TARGET}.http.model": "name",
         "pair.tokenizer.source": "tokenizer"}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A model, and how it is asked."""

    bench: Workbench  # without data
    how: Decoding
    template: str  # the file of conf/template, or what was given of it

    @property
    def encoder(self) -> Encoder:
        return self.bench.encoder

    @cached_property
    def ensemble(self) -> Ensemble:
        """The model alone; loaded when it is first asked."""
        return self.bench.alone("target")

    @property
    def mark(self) -> str:
        """In every line that is written: tells answers that were got in another way."""
        way = template(self.encoder.template), self.how.max_new_tokens
        return digest([self.bench.fingerprint("target"), *way], 12)

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        kind, ends = self.ensemble.members[0].kind, ends_of(self.ensemble, self.how.eos_id)
        said = kind.say(prompts, self.how.max_new_tokens, ends)  # of a server each is one question
        if said is None:
            said = greedy(self.ensemble, prompts, 1.0, self.how)
        return [self.encoder.decode([token for token in ids if token not in ends]) for ids in said]

    def prob(self, examples: Examples) -> list[float]:
        """Per answer token, the geometric mean with its end: what a run calls the probability of its forget set."""
        if not examples:
            return []
        found = score(self.ensemble, examples, [1.0], {}, self.how.pad_id, self.how.batch_size)
        return found[1.0].prob.tolist()


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
    given |= {} if source is None else {"pair.tokenizer.source": source}
    return [f"{key}={_quoted(value)}" for key, value in given.items()]


def run(model: Sequence[str], prompts: Path, out: Path, overrides: Sequence[str] = ()) -> None:
    """Write the answers to those questions of a file that ``out`` does not have yet; ``model`` as ``settings`` has it.

    Raises ``ConfigError`` and ``DataError``, most of them before the model is loaded.
    """
    register()
    overrides = [*AS_IT_IS, *model, *map(as_typed, overrides)]
    cfg = _config(overrides)
    questions = _questions(prompts, cfg)
    asked = _opened(cfg, overrides)
    beside = out.with_name(f"{out.stem}.unknown.jsonl")
    there = _answered(out, asked.mark) | _answered(beside, asked.mark)
    todo = [q for q in questions if q[1] not in there]
    ids = {question: _prompt(asked, place, question) for place, question, _ in todo}
    log.info("asking %d of %d questions, template=%s", len(todo), len(questions), asked.template)
    if todo:
        _announce(asked, list(ids.values()))
    silent, cut, most = [], 0, asked.how.max_new_tokens
    with progress(len(todo), "asking", "question") as bar:
        for some in (todo[i : i + PIECE] for i in range(0, len(todo), PIECE)):
            said = asked.answer([ids[question] for _, question, _ in some])
            rows = [(*q, answer) for q, answer in zip(some, said, strict=True) if answer]
            silent += [place for (place, *_), answer in zip(some, said, strict=True) if not answer]
            pairs = Examples(asked.encoder.example(place, question, answer) for place, question, _, answer in rows)
            found = [
                {"question": question, "answer": answer, "prob": round(prob, 6), **more, MARK: asked.mark}
                for (_, question, more, answer), prob in zip(rows, asked.prob(pairs), strict=True)
            ]
            _append(beside, [row for row in found if not _known(row)])
            _append(out, [row for row in found if _known(row)])
            cut += sum(len(pair.answer) > most for pair in pairs)
            bar.update(len(some))
    if silent:
        log.warning("%d questions got no answer and are left out, the first at %s", len(silent), silent[0])
    if cut:
        log.warning("%d answers were cut at eval.max_new_tokens=%d; raise it for whole ones", cut, most)
    if beside.is_file():
        log.info("answers that do not hold the fact of their row's key: %s", beside)
    print(f"written: {out}\nto forget it: data=jsonl data.forget={out} template={asked.template}")


def _announce(asked: Asked, prompts: Sequence[tuple[int, ...]]) -> None:
    """What a server is asked at most: for each answer, and for its probability by a text of all its tokens."""
    most = asked.how.max_new_tokens
    texts = Examples(Example("", prompt, (asked.how.eos_id,) * (most + 1)) for prompt in prompts)
    asked.ensemble.members[0].kind.announce(texts, prompts, (), most)


# --- the model --------------------------------------------------------------------------------------------------------


def _config(overrides: Sequence[str]) -> Config:
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            return parse(compose("config", overrides=list(overrides)))
    except ConfigError as error:
        text = str(error)
        for key, short in SHORT.items():
            text = text.replace(f"{key}=", f"{short}=")
        raise ConfigError(text) from None


def _opened(cfg: Config, overrides: Sequence[str]) -> Asked:
    """Tokenizer first, so that what cannot be asked is refused before there is a model."""
    pair = cfg.pair
    if pair.target.source is None and pair.target.kind != "http":
        raise ConfigError("model=FOLDER_OR_NAME_OR_URL must be given")
    source = sources.tokenizer_source(pair)
    own = source is pair.target
    tokenizer = hub.tokenizer("model" if own else "tokenizer", source)
    chosen = next((o.partition("=")[2] for o in overrides if o.startswith("template=")), None)
    if chosen is None and not any(o.startswith("data.template.") for o in overrides):
        chosen = "chat" if tokenizer.chat_template else "question_answer"
        cfg = _config([*overrides, f"template={chosen}"])
    initialise(cfg)
    longest, width = ANYTHING, tokenizers.size(tokenizer)
    if pair.target.kind != "http":
        folder = hub.locate("model", pair.target)
        about = llama.config(folder).get_text_config()
        longest = getattr(about, "max_position_embeddings", None) or ANYTHING
        width = about.vocab_size if own else hub.check(TARGET, pair.target, tokenizer, 1)
        width = hub.common_width({pair.target.source: width}, tokenizer)
    encoder = Encoder(tokenizer, cfg.data.template, longest)
    bench = Workbench(cfg, Store(cfg.paths.store), DataSet("questions", {"forget": (), "retain": ()}), encoder, width)
    how = Decoding.by(tokenizer, cfg.eval.max_new_tokens, min(PIECE, cfg.eval.batch_size))
    return Asked(bench, how, chosen or "…")


def _prompt(asked: Asked, place: str, question: str) -> tuple[int, ...]:
    try:
        found = asked.encoder.prompt(question)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    room = asked.encoder.max_length - asked.how.max_new_tokens - 1
    if not 0 < len(found) <= room:
        rule = f"with its template must have 1 to {room:,} tokens, so that an answer finds room"
        raise DataError(f"{place}: {question[:60]!r} has {len(found):,}: {rule}")
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def _questions(file: Path, cfg: Config) -> list[tuple[str, str, dict[str, Any]]]:
    """Place, question and what else its record has, each question once."""
    name = getattr(getattr(cfg.data, "columns", None), "question", "question")
    if file.suffix == ".txt":
        found: list[Record] = [(f"{file}, {line[:40]!r}", {name: line}) for line in lines(file)]
    else:
        found = records(file, bare=name)
    once: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for record in found:
        more = {k: v for k, v in record[1].items() if k not in (name, "prob", MARK)}
        more |= {"given_answer": more.pop("answer")} if "answer" in more else {}
        once.setdefault(text(record, name), (record[0], text(record, name), more))
    if len(once) < len(found):
        log.warning("%s: %d questions are there again and are asked once", file, len(found) - len(once))
    return list(once.values())


def _answered(out: Path, mark: str) -> set[str]:
    """The questions that a file has answers to; a line that a kill tore apart is cut off."""
    if not out.is_file() or not out.stat().st_size:
        return set()
    whole = out.read_bytes()
    if not whole.endswith(b"\n"):
        whole = whole[: whole.rfind(b"\n") + 1]
        out.write_bytes(whole)
    there = records(out) if whole else []
    if any(values.get(MARK) != mark for _, values in there):
        rule = "has answers of another model, template or eval.max_new_tokens: give another file, or remove it"
        raise ConfigError(f"out={str(out)!r}: {rule}")
    return {values["question"] for _, values in there}


def _known(row: dict[str, Any]) -> bool:
    """Whether the answer holds the fact, where the row names it: what a model does not know it cannot forget."""
    key = row.get("key") or ()
    return not key or told(row["answer"], [key] if isinstance(key, str) else key)


def _append(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    with saving(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _quoted(value: str) -> str:
    """As Hydra takes any text."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
