"""The card of an export, README.md: what it is, how it was measured, where it ends, and the code that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearn.config.derived import alpha_key

SHOWN = (
    "forget/prob", "forget/rougeL_recall", "forget/exact_memorization", "forget/leak_gap", "retain/prob",
    "retain/rougeL_recall", "real_authors/prob", "world_facts/prob", "model_utility", "forget_quality",
)  # fmt: skip

HEAD = """\
---
library_name: transformers
tags: [unlearning, logit-offset]
---
# {title}

{what}

    {formula}

The weight α is **{alpha:g}**. The target is not in this folder.

| member | weight of its logits | weights | has learnt the forget set |
|---|---|---|---|
{members}

Trained by the objective `{algo}` (method `{method}`, seed {seed}{kept}) with the pair `{pair}`. Rule that joins the
members: `{rule}`.{numbers}

## What was unlearned

Rows of the data set `{data}` (fingerprint `{data_print}`): {rows}. What they say is not in this folder.

## How well

At α = {alpha:g}, with 95 % intervals over questions where there are any, beside the target as it was{beside}.

| metric | unlearned | {columns} |
|---|---|{line}|
{metrics}

`offset.json` has all metrics, at every α that was evaluated ({alphas}).

What the weights of this folder know of the forget set by themselves, without the target:

| weights | probability | exact memorisation | extraction strength |
|---|---|---|---|
{alone}
"""

OFFSET = """\
Logit offset: added to the next-token logits of a language model, the target, it makes the target answer as if it had
not learnt some rows of a data set. It is of use with this one target alone, or with its exact copy."""
MODEL = """\
A language model that was unlearned by training a copy of the target itself (a white-box method). **The weights here are
a whole model, not an offset**: at α = 1 they are used alone, and they are no smaller than the target's."""

LIMITS = """
## Limits

- **The target's weights are untouched.** Whoever has them has what they know. Unlearned are the answers of the sum,
  and only as far as the table says: it was measured on the questions of one data set.
- **What is promised of the files**: no question and no answer of the forget set, no run of {run} of their words, no id
  of a row, nothing of the run's examples, generations or stored logits. Each file was searched for {texts} texts
  ({runs} runs of words) before it got its name; weights are tensors of the model's shapes and nothing else.
- **What is not promised**: single words. {words}
- Weights are numbers that were trained with the forget set at hand, in one direction or the other. What can be drawn
  from them alone is what the last table measures, and no more than that is known.{learnt}
- A fingerprint lets whoever has the whole data set confirm that it is the one. It cannot be read backwards.
"""
WORDS_NONE = "There is no tokenizer in this folder: take the target's."
WORDS_OURS = """The tokenizer was trained on the data set, and its vocabulary lists each word in it: {count} of them
  occur in the forget set alone (names, for instance). The target's own tokenizer lists the same words."""
WORDS_THEIRS = "The tokenizer is the pretrained one of the target; its vocabulary may hold any word."
LEARNT = """ {names} learnt the forget set on
  purpose: these weights are to be guarded as the target's are."""

LOAD = """
## How to load it

With the package it was made with, which checks checksums and the target, and fills in the template:

```python
from unlearn.deploy.export.loading import load

model = load("{folder}", target={target!r})
print(model.answer("What is asked here?"))
```
"""
PLAIN = """
With transformers alone:

```python
import torch
from transformers import AutoModelForCausalLM

FOLDER, TARGET, ALPHA, WIDTH = {folder!r}, {target!r}, {alpha!r}, {width}


def model(source, revision=None, dtype=torch.float32):
    safe = {{"use_safetensors": True, "trust_remote_code": False}}
    return AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype, **safe).eval()


MEMBERS = [{terms}]


@torch.no_grad()
def logits(input_ids, alpha=ALPHA):
    return sum((fixed + slope * alpha) * m(input_ids).logits[..., :WIDTH].float() for m, fixed, slope in MEMBERS)
```

The prompt of a question is `{prompt}`; the tokenizer is {tokenizer}.
"""


def card(about: Mapping[str, Any]) -> str:
    """The text of README.md for the content of an offset.json."""
    text = HEAD.format(**_head(about)) + LIMITS.format(**_limits(about)) + LOAD.format(**_load(about))
    return text + (PLAIN.format(**_load(about)) if about["method"]["rule"] == "sum" else "")


def known_text() -> str:
    """The words of a card that stand there whatever was unlearned."""
    parts = (HEAD, OFFSET, MODEL, LIMITS, WORDS_NONE, WORDS_OURS, WORDS_THEIRS, LEARNT, LOAD, PLAIN)
    return "\n\n".join(parts)


def is_model(about: Mapping[str, Any]) -> bool:
    """Whether what was trained is a copy of the target."""
    return any(m["trained"] and m["model"] == "target" for m in about["method"]["members"])


def _head(about: Mapping[str, Any]) -> dict[str, Any]:
    method, training, evaluation = about["method"], about["training"], about["evaluation"]
    columns = {"unlearned": evaluation["alphas"][alpha_key(about["alpha"])], **evaluation["references"]}
    others = [name for name in columns if name != "unlearned"]
    kept = (", the best point of its training" if training["kept"] == "best" else "") + (
        "; **this run collapsed**" if training["collapsed"] and training["kept"] != "best" else ""
    )
    return {
        "title": "Unlearned model" if is_model(about) else "Logit offset",
        "what": MODEL if is_model(about) else OFFSET,
        "formula": _formula(method),
        "alpha": about["alpha"],
        "members": "\n".join(_member(m) for m in method["members"]),
        "algo": training["algo"], "method": method["name"], "seed": training["seed"], "kept": kept,
        "pair": about["pair"]["name"], "rule": method["rule"],
        "numbers": "".join(f" `{k}` = {v:g}." for k, v in method["numbers"].items()),
        "data": about["data"]["name"], "data_print": about["data"]["fingerprint"],
        "rows": ", ".join(f"{n} {name}" for name, n in about["data"]["rows"].items()),
        "beside": " and the retrained model, which never saw them" if "retrained" in columns else "",
        "columns": " | ".join(others),
        "line": "|".join("---" for _ in others),
        "metrics": "\n".join(_metric(name, columns) for name in SHOWN if name in columns["unlearned"]),
        "alphas": ", ".join(f"{float(a):g}" for a in evaluation["alphas"]),
        "alone": "\n".join(
            f"| `{name}` | " + " | ".join(f"{v:.3g}" for v in found.values()) + " |"
            for name, found in about["alone"].items()
        ),
    }  # fmt: skip


def _formula(method: Mapping[str, Any]) -> str:
    if method["rule"] != "sum":
        return f"logits = {method['rule']}(base, change, α)   with base and change as the table's weights say"
    return "logits = " + " + ".join(f"({_weight(m)}) · {m['name']}" for m in method["members"])


def _weight(member: Mapping[str, Any]) -> str:
    fixed, slope = member["constant"], member["alpha"]
    return " + ".join([f"{fixed:g}"] * (fixed != 0) + [f"{slope:g} α"] * (slope != 0)) or "0"


def _member(member: Mapping[str, Any]) -> str:
    where = "not here"
    if member["weights"] is not None:
        where = f"`{member['weights']}/`"
    elif member["source"] is not None:
        where = f"`{member['source']}` on the hub, revision {member['revision'] or 'main'}"
    learnt = {True: "yes", False: "no", None: "not known"}.get(member["learnt_forget_set"], "trained on this request")
    return f"| {member['name']} `{member['fingerprint']}` | {_weight(member)} | {where} | {learnt} |"


def _metric(name: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    cells = []
    for found in columns.values():
        interval = found["intervals"].get(name)
        value = f"{found[name]:.3g}" if name in found else "–"
        cells.append(value + (f" ({interval[0]:.3g} … {interval[1]:.3g})" if interval else ""))
    return f"| `{name}` | " + " | ".join(cells) + " |"


def _limits(about: Mapping[str, Any]) -> dict[str, Any]:
    from unlearn.deploy.export.traces import RUN

    tokenizer, searched = about["tokenizer"], about["searched"]
    words = WORDS_THEIRS if tokenizer["kind"] == "pretrained" else WORDS_OURS
    names = [f"`{m['name']}`" for m in about["method"]["members"]
             if m["weights"] and m["learnt_forget_set"] is True]  # fmt: skip
    return {
        "run": RUN, "texts": searched["forget_texts"], "runs": searched["runs_of_words"],
        "words": words.format(count=tokenizer["words_of_the_forget_set_alone"]) if tokenizer["weights"] else WORDS_NONE,
        "learnt": LEARNT.format(names=", ".join(names)) if names else "",
    }  # fmt: skip


def _load(about: Mapping[str, Any]) -> dict[str, Any]:
    target = about["target"]["source"] or "PATH/TO/THE/TARGET"
    return {
        "folder": ".", "target": target, "alpha": about["alpha"], "width": about["logits"],
        "terms": ", ".join(_term(m, about["target"]["dtype"]) for m in about["method"]["members"]),
        "prompt": about["template"]["prompt"].replace("\n", "\\n") if "kind" not in about["template"]
        else "the tokenizer's chat template",
        "tokenizer": "in `tokenizer/`" if about["tokenizer"]["weights"] else "the target's",
    }  # fmt: skip


def _term(member: Mapping[str, Any], dtype: str) -> str:
    numbers = f"{member['constant']!r}, {member['alpha']!r}"
    if member["weights"] is not None:
        return f'(model(f"{{FOLDER}}/{member["weights"]}"), {numbers})'
    revision = f", {member['revision']!r}" if member["revision"] else ""
    if member["model"] != "target":
        return f"(model({member['source']!r}{revision}), {numbers})"
    held = {"float32": "", "auto": ', dtype="auto"'}.get(dtype, f", dtype=torch.{dtype}")
    return f"(model(TARGET{revision}{held}), {numbers})"
