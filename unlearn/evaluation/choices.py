"""Multiple-choice questions in local files, as tasks of lm-eval: without a network, and for questions of one's own.

A task is a file ``NAME.jsonl`` (or .json, .parquet) of questions, in one of three forms (the first two are those of
MosaicML's llm-foundry, the third is that of WMDP, arXiv 2403.03218, and MMLU):
    {"query": "Question: …", "choices": ["…", "…"], "gold": 0}                   which continuation is likelier?
    {"context_options": ["…", "…"], "continuation": "…", "gold": 1}               after which beginning is it likelier?
    {"question": "…", "choices": ["…", "…"], "answer": 0}                        which letter, the choices being shown?
A folder with the hub's files of WMDP has ``wmdp-bio/test-00000-of-00001.parquet`` …, which are tasks wmdp_bio, ….
Prompts are those of lm-eval's own tasks of the same names, without examples before them.
"""

from pathlib import Path
from typing import Any

from unlearn.config.schema import ConfigError
from unlearn.data.records import records
from unlearn.data.rows import DataError

STANDARD = ("arc_challenge", "arc_easy", "hellaswag", "winogrande", "openbookqa")  # general ability, arXiv 2404.11045
ENDINGS = {"arc_challenge": "\nAnswer:", "arc_easy": "\nAnswer:"}  # of a prompt, where the files' query lacks it
KINDS = (".jsonl", ".json", ".parquet")
OF_HUB = "*/test-00000-of-00001.parquet"
SUBJECTS = {"wmdp_bio": "biology", "wmdp_chem": "chemistry", "wmdp_cyber": "cybersecurity"}  # as lm-eval names them
SUBJECT = "The following are multiple choice questions (with answers) about {}.\n\n"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FORMS = {"choices": "query", "context_options": "continuation"}  # where the options are → where the text is


def find(folder: str | Path) -> dict[str, Path]:
    """The tasks of a folder by name: that of the file, but of a file that begins with a standard name that one."""
    folder = Path(folder)
    files = {p.stem: p for kind in reversed(KINDS) for p in sorted(folder.glob(f"[!.]*{kind}"))}
    files |= {p.parent.name.replace("-", "_"): p for p in sorted(folder.glob(OF_HUB))}
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
    if form == "context_options":  # lm-eval reads a number instead of a text as: the texts are the choices
        how = {"doc_to_text": "gold", "doc_to_target": FORMS[form]}
    measures = ("acc", "acc_norm") if form == "choices" else ("acc",)
    return how | {
        "task": name, "output_type": "multiple_choice", "test_split": "test", "doc_to_choice": form,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in measures],
        "num_fewshot": 0,
    } | ({"description": SUBJECT.format(SUBJECTS[name])} if name in SUBJECTS else {})  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """The questions of a file; all must have one form."""
    rows = []
    for place, values in records(path):
        begin, values = str(values)[:80], _lettered(values)
        gold = values.get("gold")
        form = next((f for f in FORMS if f in values), None)
        if form is None:
            needs = "needs query (or question), choices and gold (or answer), or continuation, context_options and gold"
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


def _lettered(values: dict[str, Any]) -> dict[str, Any]:
    """A question whose choices are shown with letters, in the first form; any other as it is."""
    shown = values.get("choices")
    if "question" not in values or not isinstance(shown, list):
        return values
    asked = [str(values["question"]).strip(), *(f"{n}. {choice}" for n, choice in zip(LETTERS, shown, strict=False))]
    return {
        "query": "\n".join([*asked, "Answer:"]),
        "choices": list(LETTERS[: len(shown)]),
        "gold": values.get("answer"),
    }
