"""Multiple-choice questions in local files, as tasks of lm-eval: without a network, and for questions of one's own.

A task is a file ``NAME.jsonl`` with a question per line, in one of two forms (those of MosaicML's llm-foundry):
    {"query": "Question: …", "choices": ["…", "…"], "gold": 0}                   which continuation is likelier?
    {"context_options": ["…", "…"], "continuation": "…", "gold": 1}               after which beginning is it likelier?
Prompts are those of lm-eval's own tasks of the same names, without examples before them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearn.config.schema import ConfigError
from unlearn.data.records import records
from unlearn.data.rows import DataError

STANDARD = ("arc_challenge", "arc_easy", "hellaswag", "winogrande", "openbookqa")  # general ability, arXiv 2404.11045
ENDINGS = {"arc_challenge": "\nAnswer:", "arc_easy": "\nAnswer:"}  # of a prompt, where the files' query lacks it
FORMS = {"choices": "query", "context_options": "continuation"}  # where the options are → where the text is


def find(folder: str | Path) -> dict[str, Path]:
    """The tasks of a folder by name: that of the file, but of a file that begins with a standard name that one."""
    folder = Path(folder)
    files = {p.stem: p for p in sorted(folder.glob("*.jsonl"))} if folder.is_dir() else {}
    if not files:
        raise ConfigError(f"path={str(folder)!r}: must be a folder with NAME.jsonl for every task; it has none")
    named = {}
    for name in STANDARD:
        alike = [p for stem, p in files.items() if stem.replace("_", "").startswith(name.replace("_", ""))]
        if name in files or alike:
            named[name] = files.get(name) or alike[0]
    return named | {stem: p for stem, p in files.items() if p not in named.values()}


def task(name: str, path: Path) -> dict[str, Any]:
    """lm-eval's config of a task; the questions are read and checked here."""
    import datasets

    rows = read(path)
    form = next(form for form in FORMS if form in rows[0])
    ending = next((e for standard, e in ENDINGS.items() if name.startswith(standard)), None)
    how = {"doc_to_text": f"{{{{{FORMS[form]}}}}}{ending}" if ending else FORMS[form], "doc_to_target": "gold"}
    if form == "context_options":  # lm-eval reads a number in the place of a text as: the texts are the choices
        how = {"doc_to_text": "gold", "doc_to_target": FORMS[form]}
    measures = ("acc", "acc_norm") if form == "choices" else ("acc",)
    return how | {
        "task": name, "output_type": "multiple_choice", "test_split": "test", "doc_to_choice": form,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in measures],
        "num_fewshot": 0,
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """The questions of a file; all must have one form."""
    rows = []
    for place, values in records(path):
        begin, gold = str(values)[:80], values.get("gold")
        form = next((f for f in FORMS if f in values), None)
        if form is None:
            needs = "needs query, choices and gold, or continuation, context_options and gold"
            raise DataError(f"{place}: {needs}: {begin}")
        options, text = values[form], values.get(FORMS[form])
        texts = isinstance(options, list) and len(options) > 1 and all(isinstance(o, str) for o in options)
        if not texts or not isinstance(text, str):
            raise DataError(f"{place}: {FORMS[form]} must be a text and {form} two texts or more: {begin}")
        if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(options):
            raise DataError(f"{place}: gold={gold!r} must be the number of a choice, 0 to {len(options) - 1}")
        rows.append({FORMS[form]: text, form: options, "gold": gold})
    if len({tuple(row) for row in rows}) > 1:
        raise DataError(f"{path}: its questions have different forms; all need choices, or all context_options")
    return rows
