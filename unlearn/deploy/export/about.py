"""What an export says of itself: offset.json for programs, README.md (the card, from the template beside this file)
for people. Numbers, names and fingerprints; no text of the data set, no id of a row and no path of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from torch import nn

from unlearn.config.derived import algo_name, alpha_key, training_alpha, tuning
from unlearn.config.schema import Config
from unlearn.data.rows import DataSet, Row
from unlearn.data.texts import words_of
from unlearn.deploy.export.traces import RUN, forget_rows, texts_of
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation import measures
from unlearn.evaluation.scoring import score
from unlearn.evaluation.suite import Suite
from unlearn.models import llama, tokenizers
from unlearn.models.tuning import has_updates
from unlearn.runs.baselines import suite_of
from unlearn.runs.workbench import Workbench
from unlearn.store import runlog, sources
from unlearn.store.identity import Job, template

WHOLE, UPDATED = 1, 2  # formats: of plain models; of low-rank updates, which programs that know the first refuse
LEARNT = {"target": True, "retrained": False, "small_full": True, "small_retain": False, "small_general": False}
ALONE = ("forget/prob", "forget/exact_memorization", "forget/extraction_strength")
SETTINGS = ("metrics", "semantics", "groups", "max_examples", "resamples")
METRIC = re.compile(r"[\w/@.]+")
SHOWN = (
    "forget/prob", "forget/rougeL_recall", "forget/exact_memorization", "forget/leak_gap", "retain/prob",
    "retain/rougeL_recall", "neighbours/prob", "real_authors/prob", "world_facts/prob", "model_utility",
    "forget_quality",
)  # fmt: skip


def facts(job: Job, bench: Workbench, alpha: float, models: Mapping[str, nn.Module], tokenizer: bool) -> dict[str, Any]:
    """Everything but the checksums of the files; ``models`` are those whose weights are written, by folder."""
    cfg, manifest, found = job.cfg, runlog.manifest(job.folder), runlog.evaluation(job.folder)
    return {
        "format": UPDATED if any(map(has_updates, models.values())) else WHOLE,
        "run": job.folder.name,
        "alpha": alpha,
        "method": _method(cfg, bench, models),
        "target": _where(bench, "target") | {k: getattr(cfg.pair.target, k) for k in ("dtype", "quantisation")},
        "logits": bench.width,
        "max_length": bench.encoder.max_length,
        "template": template(cfg.data.template),
        "tokenizer": _tokenizer(bench, tokenizer),
        "pair": {"name": cfg.pair.name, "seed": cfg.pair.seed, "offset_init": cfg.pair.offset_init,
                 "tuning": tuning(cfg)},
        "training": {"algo": algo_name(cfg), "alpha": training_alpha(cfg), "seed": cfg.seed,
                     "collapsed": manifest.get("collapsed") is not None, "kept": manifest.get("kept")},
        "data": {"name": cfg.data.name, "fingerprint": job.data,
                 "rows": {name: len(rows) for name, rows in bench.data.splits.items() if rows}},
        "evaluation": {
            "alphas": {key: _numbers(entry) for key, entry in found["alphas"].items()},
            "references": {name: _numbers(entry) for name, entry in found["references"].items()},
            "settings": {k: found["alphas"][alpha_key(alpha)]["settings"][k] for k in SETTINGS},
        },
        "alone": _alone(models, suite_of(cfg, bench)),
        "versions": manifest.get("versions"),
    }  # fmt: skip


def _method(cfg: Config, bench: Workbench, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    members = []
    for m in cfg.method.members:
        role = sources.role(cfg.pair, m.model)
        of = {"fingerprint": llama.fingerprint(models[m.name])} if m.trained else _where(bench, m.model)
        learnt: bool | str | None = LEARNT[role]
        if m.trained:
            learnt = True if cfg.method.reversed else "trained on this request"
        elif role == "small_general" and sources.is_pretrained(cfg.pair, role):
            learnt = None  # whoever made it knows
        if m.trained and has_updates(models[m.name]):
            base = bench.model(m.model)
            written = next((name for name, model in models.items() if model is base), None)
            of["base"] = _where(bench, m.model) | {"model": m.model, "weights": written}
        own = {"alpha" if key == "slope" else key: value for key, value in asdict(m).items()}  # its name in the files
        members.append(own | {"weights": m.name if m.name in models else None, "learnt_forget_set": learnt} | of)
    return {"name": cfg.method.name, "rule": cfg.method.rule, "numbers": dict(cfg.method.numbers), "members": members}


def _where(bench: Workbench, model: str) -> dict[str, Any]:
    """What a frozen model is: its fingerprints, and its name on the hub if it has one."""
    source = sources.on_hub(bench.cfg.pair, sources.role(bench.cfg.pair, model))
    return {
        "fingerprint": bench.fingerprint(model),
        "content": sources.content(bench.folder(model), bench.store.root / "hashes"),
        "source": None if source is None else source.source,
        "revision": None if source is None else source.revision,
    }


def _tokenizer(bench: Workbench, written: bool) -> dict[str, Any]:
    own, kind, alone = bench.encoder.tokenizer, bench.cfg.pair.tokenizer.kind, None
    if kind != "pretrained" and written:
        listed = {own.decode([id]).strip().casefold() for id in own.get_vocab().values()}
        alone = len(listed & only_to_forget(bench.data))
    found = {"weights": "tokenizer" if written else None, "kind": kind, "size": tokenizers.size(own)}
    return found | {"words_of_the_forget_set_alone": alone}


def only_to_forget(data: DataSet) -> set[str]:
    """Words that occur in rows to be forgotten, and in no other text of the data set."""

    def words(rows: list[Row]) -> set[str]:
        return {word for row in rows for text in texts_of(row) for word in words_of(text)}

    gone = forget_rows(data)
    ids = {row.id for row in gone}
    others = [row for rows in (*data.splits.values(), data.wordings) for row in rows if row.id not in ids]
    return words(gone) - words(others) - {word for text in data.refusals for word in words_of(text)}


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Aggregates by metric, and their intervals: numbers under names of metrics, and nothing else. To two places: by
    more, whoever has the target could tell which texts were forgotten."""
    values = {k: round(float(v), 2) for k, v in entry.items() if METRIC.fullmatch(k) and isinstance(v, int | float)}
    intervals = {k: [round(float(end), 2) for end in ends] for k, ends in entry.get("intervals", {}).items()}
    intervals = {k: ends for k, ends in intervals.items() if k in values}
    return values | {"intervals": intervals}


def _alone(models: Mapping[str, nn.Module], suite: Suite) -> dict[str, dict[str, float]]:
    """How much each model that is written knows of the forget set by itself, without the target."""
    split, pad, found = suite.split("forget"), suite.encoder.tokenizer.pad_token_id, {}
    for name, model in models.items() if split is not None else ():
        alone = Ensemble((Member(name, model, ""),))
        scores = score(alone, split.examples, [1.0], {}, pad, suite.cfg.batch_size, argmax_of=split.right)[1.0]
        values, _ = measures.measure(split, scores, None, suite.semantics)
        found[name] = {metric: round(values[metric], 2) for metric in ALONE}
    return found


# --- the card -----------------------------------------------------------------------------------------------------


def card(about: Mapping[str, Any]) -> str:
    """The text of README.md for the content of an offset.json."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["repr"] = repr
    environment.globals["updated"] = lambda member: "base" in member
    training, members, evaluation = about["training"], about["method"]["members"], about["evaluation"]
    columns = [evaluation["alphas"][alpha_key(about["alpha"])], *evaluation["references"].values()]
    kept = ", the best point of its training" if training["kept"] == "best" else ""
    collapsed = "; **this run collapsed**" if training["collapsed"] and training["kept"] != "best" else ""
    target = about["target"]["source"] or "PATH/TO/THE/TARGET"
    base = next((m["base"] for m in members if "base" in m), None)
    lies = base is not None and base["weights"] is None and base["source"] is None and base["model"] != "target"
    return environment.from_string(known_text()).render(
        about,
        is_model=any(m["trained"] and m["model"] == "target" for m in members),
        kept=kept + collapsed,
        shown=[name for name in SHOWN if name in columns[0]],
        columns=columns,
        learnt={True: "yes", False: "no", None: "not known"},
        guarded=[m["name"] for m in members if m["weights"] and m["learnt_forget_set"] is True],
        run=RUN,
        target_place=target,
        base=base,
        base_place=(target if base["content"] == about["target"]["content"] else "PATH/TO/THE/BASE") if lies else None,
    )


def known_text() -> str:
    """The words of a card that stand there whatever was unlearned: its template."""
    return Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
