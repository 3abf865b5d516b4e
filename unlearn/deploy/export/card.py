"""The card of an export, README.md, from the template beside this file: what it is, how it was measured, where it ends,
and the code that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from unlearn.config.derived import alpha_key
from unlearn.deploy.export.traces import RUN

SHOWN = (
    "forget/prob", "forget/rougeL_recall", "forget/exact_memorization", "forget/leak_gap", "retain/prob",
    "retain/rougeL_recall", "real_authors/prob", "world_facts/prob", "model_utility", "forget_quality",
)  # fmt: skip
LEARNT = {True: "yes", False: "no", None: "not known"}


def card(about: Mapping[str, Any]) -> str:
    """The text of README.md for the content of an offset.json."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"repr": repr, "term": partial(_term, dtype=about["target"]["dtype"])}
    training, members, evaluation = about["training"], about["method"]["members"], about["evaluation"]
    columns = [evaluation["alphas"][alpha_key(about["alpha"])], *evaluation["references"].values()]
    kept = ", the best point of its training" if training["kept"] == "best" else ""
    collapsed = "; **this run collapsed**" if training["collapsed"] and training["kept"] != "best" else ""
    chat = "kind" in about["template"]
    return environment.from_string(known_text()).render(
        about,
        is_model=any(m["trained"] and m["model"] == "target" for m in members),
        kept=kept + collapsed,
        shown=[name for name in SHOWN if name in columns[0]],
        cells=lambda name: [_cell(found, name) for found in columns],
        weight=_weight,
        place=_place,
        learnt=lambda member: LEARNT.get(member["learnt_forget_set"], "trained on this request"),
        guarded=[f"`{m['name']}`" for m in members if m["weights"] and m["learnt_forget_set"] is True],
        run=RUN,
        target_place=about["target"]["source"] or "PATH/TO/THE/TARGET",
        prompt="the tokenizer's chat template" if chat else about["template"]["prompt"].replace("\n", "\\n"),
    )


def known_text() -> str:
    """The words of a card that stand there whatever was unlearned: its template."""
    return Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")


def _weight(member: Mapping[str, Any]) -> str:
    fixed, slope = member["constant"], member["alpha"]
    return " + ".join([f"{fixed:g}"] * (fixed != 0) + [f"{slope:g} α"] * (slope != 0)) or "0"


def _place(member: Mapping[str, Any]) -> str:
    if member["weights"] is not None:
        return f"`{member['weights']}/`"
    if member["source"] is not None:
        return f"`{member['source']}` on the hub, revision {member['revision'] or 'main'}"
    return "not here"


def _cell(found: Mapping[str, Any], name: str) -> str:
    value = f"{found[name]:.3g}" if name in found else "–"
    interval = found["intervals"].get(name)
    return value + (f" ({interval[0]:.3g} … {interval[1]:.3g})" if interval else "")


def _term(member: Mapping[str, Any], dtype: str) -> str:
    """A member in the code that needs transformers alone."""
    numbers = f"{member['constant']!r}, {member['alpha']!r}"
    if member["weights"] is not None:
        return f'(model(f"{{FOLDER}}/{member["weights"]}"), {numbers})'
    revision = f", {member['revision']!r}" if member["revision"] else ""
    if member["model"] != "target":
        return f"(model({member['source']!r}{revision}), {numbers})"
    held = {"float32": "", "auto": ', dtype="auto"'}.get(dtype, f", dtype=torch.{dtype}")
    return f"(model(TARGET{revision}{held}), {numbers})"
