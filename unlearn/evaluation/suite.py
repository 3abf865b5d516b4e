"""What is evaluated: the rows of each split with every answer that is scored, encoded once and checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from unlearn.config.groups import needing
from unlearn.config.schema import EvalConfig
from unlearn.data.encoding import Encoder, Examples
from unlearn.data.rows import GENERAL, NEIGHBOURS, UNTRAINED, DataError, DataSet, Row
from unlearn.evaluation.groups import group
from unlearn.evaluation.metrics.semantics import SEMANTICS, Semantics

EVALUATED = ("forget", "retain", NEIGHBOURS, *GENERAL)
SCORED = ("holdout",)  # only compared with the forget set: no answers are generated


@dataclass(frozen=True)
class Split:
    """Rows of one split with every answer that is scored, in one flat list."""

    name: str
    rows: list[Row]
    examples: Examples  # all answers, row by row: right, paraphrased (if any), wrong ones
    right: list[int]  # where each row's right answer is in `examples`
    compared: list[int]  # the right answer that the wrong ones are compared with: the paraphrase where there is one
    wrong: list[list[int]]
    prompts: list[tuple[int, ...]]
    gold: list[str]  # what generations are compared with
    labels: list[str]  # the text whose probability the right answer's is

    @property
    def answers(self) -> list[str]:
        """The right answers as the data have them."""
        return [row.answer for row in self.rows]

    @property
    def people(self) -> tuple[str, ...]:
        """Whom each row is about, where the data say so."""
        return tuple(row.group for row in self.rows)

    @property
    def generated(self) -> bool:
        return self.name not in SCORED

    @property
    def paraphrased(self) -> bool:
        return self.compared != self.right

    @cached_property
    def right_answers(self) -> Examples:
        return Examples(self.examples[i] for i in self.right)

    def part(self, chosen: Sequence[int]) -> "Split":
        by_row = ("rows", "right", "compared", "wrong", "prompts", "gold", "labels")
        return replace(self, **{name: [getattr(self, name)[i] for i in chosen] for name in by_row})


@dataclass(frozen=True)
class Suite:
    """What to evaluate, and what identifies the result."""

    splits: list[Split]
    encoder: Encoder
    cfg: EvalConfig
    settings: dict[str, Any]
    stored_rows_gib: float
    data: DataSet | None = None  # what the splits are of

    @property
    def pad_id(self) -> int:
        return self.encoder.tokenizer.pad_token_id

    @property
    def semantics(self) -> Semantics:
        return SEMANTICS[self.cfg.semantics]

    def split(self, name: str) -> Split | None:
        return next((s for s in self.splits if s.name == name), None)


def suite(data: DataSet, encoder: Encoder, cfg: EvalConfig, settings: dict[str, Any], stored_rows_gib: float) -> Suite:
    """Choose and encode the rows; ``settings`` (``identity.eval_settings``) go into every evaluated entry."""
    semantics = SEMANTICS[cfg.semantics]
    if semantics.labels_by_length:
        encoder = Encoder(encoder.tokenizer, encoder.template, encoder.max_length, labels_by_length=True)
    scored = SCORED if needing(cfg.groups, "holdout") else ()
    splits = []
    for name in (*EVALUATED, *data.requests(), *UNTRAINED, *scored):
        if rows := data.evaluated(name):
            splits.append(encoded(name, spaced(rows, cfg.max_examples)[: semantics.rows], encoder))
    _check(data, splits, cfg)
    return Suite(splits, encoder, cfg, settings, stored_rows_gib, data)


def spaced(rows: Sequence[Row], most: int | None) -> list[Row]:
    """At most ``most`` rows, evenly spaced, so that every part of the split is represented."""
    if most is None or len(rows) <= most:
        return list(rows)
    return [rows[i * len(rows) // most] for i in range(most)]


def encoded(name: str, rows: list[Row], encoder: Encoder) -> Split:
    examples, right, compared, wrong = Examples(), [], [], []

    def add(row: Row, answer: str) -> int:
        examples.append(encoder.example(row.id, row.question, answer))
        return len(examples) - 1

    for row in rows:
        right.append(add(row, row.answer))
        compared.append(add(row, row.paraphrased_answer) if row.paraphrased_answer else right[-1])
        wrong.append([add(row, answer) for answer in row.perturbed_answers])
    prompts = [encoder.prompt(r.question) for r in rows]
    gold = labels = [r.answer for r in rows]
    if encoder.labels_by_length:  # labels may lack the answer's first word; the gold text is the whole less the prompt
        answers = [examples[i] for i in right]
        labels = [encoder.tokenizer.decode(e.answer, skip_special_tokens=True) for e in answers]
        wholes = [encoder.text_of(e.prompt + e.answer) for e in answers]
        gold = [whole.replace(encoder.text_of(p), "").strip() for whole, p in zip(wholes, prompts, strict=True)]
    return Split(name, rows, examples, right, compared, wrong, prompts, gold, labels)


def _check(data: DataSet, splits: Sequence[Split], cfg: EvalConfig) -> None:
    """Refuse what would make a metric silently wrong or absent."""
    # cut on purpose, as those who defined the metrics do
    limited = SEMANTICS[cfg.semantics].total_tokens is not None or needing(cfg.groups, "excerpts")
    for split in splits:
        for name in ("perturbed_answers", "paraphrased_answer"):
            without = [r.id for r in split.rows if not getattr(r, name)]
            if 0 < len(without) < len(split.rows):
                rule = "and others have; the truth ratio compares them: give them to all rows or to none"
                raise DataError(f"data set {data.name!r}: {split.name} row {without[0]!r} has no {name}, {rule}")
        longest = max(len(e.answer) - 1 for e in split.right_answers)
        if split.generated and longest > cfg.max_new_tokens and not limited:
            rule = f"answers of {split.name} have up to {longest} tokens; take eval=tofu, or a larger number"
            raise DataError(f"eval.max_new_tokens={cfg.max_new_tokens} would cut generations short: {rule}")
    if needing(cfg.groups, "holdout") and not any(s.name == "holdout" for s in splits):
        has = f"data set {data.name!r} has none; its splits: {', '.join(k for k, v in data.splits.items() if v)}"
        raise DataError(f"eval.groups: privacy and gradnorm compare with a holdout set, and {has}")
    for name in cfg.groups:
        getattr(group(name), "check", lambda *_: None)(data, splits)
