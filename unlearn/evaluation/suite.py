"""What is evaluated: the rows of each split with every answer that is scored, encoded once and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.config.schema import EvalConfig
from unlearn.data.encoding import Encoder, Examples
from unlearn.data.rows import REQUEST, DataError, DataSet, Row
from unlearn.evaluation.metrics.semantics import SEMANTICS, Semantics

EVALUATED = ("forget", "retain", "real_authors", "world_facts")
TEST = ("test",)  # of a task's data
KNOWLEDGE = ("forget_knowledge", "retain_knowledge")  # MUSE asks about the facts of its texts
VERBATIM = "forget_verbatim"  # and has them continued
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

    @property
    def generated(self) -> bool:
        return self.name not in SCORED

    @property
    def paraphrased(self) -> bool:
        return self.compared != self.right


def to_forget(split: str) -> bool:
    """Whether a split is somebody's forget set: of this request or, before or after it, of another."""
    return split == "forget" or split.startswith(REQUEST)


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
    def semantics(self) -> Semantics:
        return SEMANTICS[self.cfg.semantics]

    def split(self, name: str) -> Split | None:
        return next((s for s in self.splits if s.name == name), None)


def suite(data: DataSet, encoder: Encoder, cfg: EvalConfig, settings: dict[str, Any], stored_rows_gib: float) -> Suite:
    """Choose and encode the rows; ``settings`` (``identity.eval_settings``) go into every evaluated entry."""
    splits, most = [], SEMANTICS[cfg.semantics].rows
    if SEMANTICS[cfg.semantics].labels_by_length:
        encoder = Encoder(encoder.tokenizer, encoder.template, encoder.max_length, labels_by_length=True)
    for name in (*EVALUATED, *data.requests(), *TEST, *KNOWLEDGE, VERBATIM, *(SCORED if _compares(cfg) else ())):
        rows = list(data.evaluated(name))
        if rows:
            whole = (to_forget(name) or name in SCORED) and "muse" not in cfg.groups  # MUSE's are thousands of rows
            splits.append(_split(name, (rows if whole else spaced(rows, cfg.max_examples))[:most], encoder))
    _check(data, splits, cfg)
    return Suite(splits, encoder, cfg, settings, stored_rows_gib, data)


def part(split: Split, chosen: Sequence[int]) -> Split:
    """Some rows of a split, as a split: with their right answers alone."""
    examples = Examples(split.examples[split.right[i]] for i in chosen)
    right, prompts, gold = (
        list(range(len(examples))),
        [split.prompts[i] for i in chosen],
        [split.gold[i] for i in chosen],
    )
    return Split(
        split.name, [split.rows[i] for i in chosen], examples, right, right, [[] for _ in right], prompts, gold
    )


def spaced(rows: Sequence[Row], most: int | None) -> list[Row]:
    """At most ``most`` rows, evenly spaced, so that every part of the split is represented."""
    if most is None or len(rows) <= most:
        return list(rows)
    return [rows[i * len(rows) // most] for i in range(most)]


def _split(name: str, rows: list[Row], encoder: Encoder) -> Split:
    examples, right, compared, wrong = Examples(), [], [], []

    def add(row: Row, answer: str) -> int:
        examples.append(encoder.example(row.id, row.question, answer))
        return len(examples) - 1

    for row in rows:
        right.append(add(row, row.answer))
        compared.append(add(row, row.paraphrased_answer) if row.paraphrased_answer else right[-1])
        wrong.append([add(row, answer) for answer in row.perturbed_answers])
    prompts = [encoder.prompt(r.question) for r in rows]
    gold = [r.answer for r in rows]
    if encoder.labels_by_length:  # then a label may lack the answer's first word, and the gold text is made of labels
        asked = [encoder.decode(p) for p in prompts]
        gold = [encoder.decode(examples[i].answer).replace(p, "").strip() for i, p in zip(right, asked, strict=True)]
    return Split(name, rows, examples, right, compared, wrong, prompts, gold)


def _compares(cfg: EvalConfig) -> bool:
    return bool({"privacy", "gradnorm"} & set(cfg.groups))


def _check(data: DataSet, splits: Sequence[Split], cfg: EvalConfig) -> None:
    """Refuse what would make a metric silently wrong or absent."""
    for split in splits:
        _check_alternatives(data, split)
        longest = max(len(split.examples[i].answer) - 1 for i in split.right)
        # cut on purpose, as those who defined the metrics do
        limited = SEMANTICS[cfg.semantics].total_tokens is not None or "muse" in cfg.groups
        if split.generated and longest > cfg.max_new_tokens and not limited:
            raise DataError(
                f"eval.max_new_tokens={cfg.max_new_tokens} would cut generations short: answers of the "
                f"{split.name} split of {data.name!r} have up to {longest} tokens; take eval=tofu, or a larger "
                "eval.max_new_tokens"
            )
    if _compares(cfg) and not any(s.name == "holdout" for s in splits):
        raise DataError(
            f"eval.groups: privacy and gradnorm compare the forget set with a holdout set, and data set {data.name!r} "
            f"has none; its splits: {', '.join(k for k, v in data.splits.items() if v)}"
        )
    if "gate" in cfg.groups and len(data.splits["retain"]) < 5:
        raise DataError(
            f"eval.groups: gate chooses its threshold on retain questions that it does not learn from, and "
            f"{len(data.splits['retain'])} are too few; it needs 5"
        )
    without = [r.id for s in splits if s.name == "forget" for r in s.rows if not r.paraphrased_question]
    if "paraphrased" in cfg.groups and without:
        raise DataError(
            f"eval.groups: paraphrased needs a paraphrased question in every forget row; {without[0]!r} has none"
        )


def _check_alternatives(data: DataSet, split: Split) -> None:
    """Wrong and paraphrased answers: every row has them, or none."""
    for name, has in (
        ("perturbed_answers", [bool(r.perturbed_answers) for r in split.rows]),
        ("paraphrased_answer", [bool(r.paraphrased_answer) for r in split.rows]),
    ):
        if any(has) and not all(has):
            raise DataError(
                f"data set {data.name!r}: {split.name} row {split.rows[has.index(False)].id!r} has no {name}, and "
                f"others have; the truth ratio compares them, so every row needs them, or none"
            )
