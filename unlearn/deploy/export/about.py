"""What an export says of itself: offset.json for programs, README.md (the card, from the template beside this file)
for people. Numbers, names and fingerprints; no text of the data set, no id of a row and no path of the machine.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from torch import nn

from unlearn.config.derived import algo_name, alpha_key, training_alpha, tuning
from unlearn.data.rows import DataSet, Row
from unlearn.data.texts import words_of
from unlearn.deploy.export.loading import FORMAT
from unlearn.deploy.export.members import Piece
from unlearn.deploy.export.traces import RUN, forget_rows, texts_of
from unlearn.deploy.export.writing import ALONE as BY_ITSELF
from unlearn.deploy.export.writing import CODE, HINDRANCES, ways
from unlearn.deploy.parts import Part
from unlearn.ensemble.engines.configuration_unlearned import target_of, whole
from unlearn.ensemble.engines.custom_generate import fingerprint
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation import measures
from unlearn.evaluation.scoring import score
from unlearn.models import llama, tokenizers
from unlearn.runs.baselines import suite_of
from unlearn.runs.opened import Opened
from unlearn.store import runlog, sources
from unlearn.store.identity import template

LEARNT = {"target": True, "retrained": False, "small_full": True, "small_retain": False, "small_general": False}
ALONE = ("forget/prob", "forget/exact_memorization", "forget/extraction_strength")
SETTINGS = ("metrics", "semantics", "groups", "max_examples", "resamples")
METRIC = re.compile(r"[\w/@.]+")
SHOWN = (
    "forget/prob", "forget/rougeL_recall", "forget/exact_memorization", "forget/leak_gap", "retain/prob",
    "retain/rougeL_recall", "neighbours/prob", "real_authors/prob", "world_facts/prob", "model_utility",
    "forget_quality", "artefact/prob", "artefact/anchor_prob", "artefact/relearnt_prob",
)  # fmt: skip


def facts(
    runs: Sequence[Opened],
    parts: Sequence[Part],
    found: Sequence[Piece],
    config: Mapping[str, Any],
    models: Mapping[str, nn.Module],
    tokenizer: bool,
    chats: bool,
) -> dict[str, Any]:
    """Everything but the files' checksums; ``models`` are those that are written; ``chats``: chat clients ask alike."""
    bench, open_ways, alone = runs[0].bench, ways(config), None
    own, kind = bench.encoder.tokenizer, runs[0].cfg.pair.tokenizer.kind
    if kind != "pretrained" and tokenizer:
        listed = {own.decode([id]).strip().casefold() for id in own.get_vocab().values()}
        alone = len(listed & set().union(*(only_to_forget(run.bench.data) for run in runs)))
    target = None if open_ways[BY_ITSELF] else fingerprint(bench.model("target"))
    return {
        "format": FORMAT,
        "alpha": config["alpha"],
        "ways": open_ways,
        "target": {"fingerprint": bench.fingerprint("target"), "weights": target},
        "members": {p.name: _member(p, models) for p in found},
        "max_length": config["max_position_embeddings"],
        "template": template(runs[0].cfg.data.template),
        "tokenizer": {"written": tokenizer, "kind": kind, "size": tokenizers.size(own),
                      "words_of_the_forget_set_alone": alone, "chats_as_trained": chats},
        "requests": [_request(run, part, found, models) for run, part in zip(runs, parts, strict=True)],
    }  # fmt: skip


def _member(p: Piece, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What weights a member has, and whether they learnt what was to be forgotten."""
    pair, bench, learnt = p.run.cfg.pair, p.run.bench, LEARNT[p.role]
    known = {"role": p.role, "fingerprint": bench.fingerprint(p.role)}
    if p.own.trained:
        learnt = True if p.run.cfg.method.reversed else "trained on this request"
        known |= {"fingerprint": llama.fingerprint(models[p.name]), "began_as": known["fingerprint"]}
    elif p.role == "small_general" and sources.is_pretrained(pair, p.role):
        learnt = None  # whoever made it knows
    return known | {"learnt_forget_set": learnt}


def _request(run: Opened, part: Part, found: Sequence[Piece], models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """One run: how it was trained, on how much, and what was measured."""
    cfg, job, manifest, entry = run.cfg, run.job, runlog.manifest(run.folder), runlog.evaluation(run.folder)
    of_run = {p.name for p in found if p.run is run}
    return {
        "run": run.folder.name,
        "alpha": part.alpha,
        "method": cfg.method.name,
        "pair": {"name": cfg.pair.name, "seed": cfg.pair.seed, "offset_init": cfg.pair.offset_init,
                 "tuning": tuning(cfg)},
        "training": {"algo": algo_name(cfg), "alpha": training_alpha(cfg), "seed": cfg.seed,
                     "collapsed": manifest.get("collapsed") is not None, "kept": manifest.get("kept")},
        "data": {"name": cfg.data.name, "fingerprint": job.data,
                 "rows": {name: len(rows) for name, rows in run.bench.data.splits.items() if rows}},
        "evaluation": {
            "alphas": {key: _numbers(one) for key, one in entry["alphas"].items()},
            "references": {name: _numbers(one) for name, one in entry["references"].items()},
            "settings": {k: entry["alphas"][alpha_key(part.alpha)]["settings"][k] for k in SETTINGS},
        },
        "alone": _alone(run, {name: model for name, model in models.items() if name.partition(".")[0] in of_run}),
        "versions": manifest.get("versions"),
    }  # fmt: skip


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


def _alone(run: Opened, models: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
    """How much each model that is written knows of the run's forget set by itself, without the target."""
    suite = suite_of(run.cfg, run.bench)
    split, pad, found = suite.split("forget"), suite.encoder.tokenizer.pad_token_id, {}
    for name, model in models.items() if split is not None else ():
        alone = Ensemble((Member(name, model, ""),))
        scores = score(alone, split.examples, [1.0], {}, pad, suite.cfg.batch_size, argmax_of=split.right)[1.0]
        values, _ = measures.measure(split, scores, None, suite.semantics)
        found[name] = {metric: round(values[metric], 2) for metric in ALONE}
    return found


def card(about: Mapping[str, Any], config: Mapping[str, Any], name: str | None) -> str:
    """The text of README.md for the content of offset.json and config.json; ``name``: of its repository on the hub."""
    how = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(**how)
    environment.filters["repr"] = repr
    members = [m | about["members"][m["name"]] for m in config["members"]]
    target = target_of(members)
    absent = [one for one in map(whole, members) if one["folder"] is None and one["source"] is None]
    theirs = {"base" if one["files"] != target["files"] else "target": one for one in absent}
    return environment.from_string(_template()).render(
        about,
        members=members,
        rule=config["rule"],
        numbers=config["numbers"],
        source=target["source"],
        whole=any("began_as" in m and m["role"] == "target" for m in members),
        updated=any(m["base"] for m in members),
        folder=name or ".",
        give={key: f"PATH/TO/THE/{key.upper()}" for key in ("target", "base") if key in theirs},
        shown=[name for name in SHOWN if any(name in _entry(r) for r in about["requests"])],
        entry=_entry,
        learnt={True: "yes", False: "no", None: "not known"},
        guarded=[m["name"] for m in members if m["learnt_forget_set"] is True and m["role"] != "target"],
        run=RUN,
    )


def _entry(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured of a request at the α at which it is deployed."""
    return request["evaluation"]["alphas"][alpha_key(request["alpha"])]


def _template() -> str:
    return Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")


def known_text() -> str:
    """The words of an export that stand there whatever was unlearned: the card's template, and the code."""
    reasons = [words for words, _ in HINDRANCES.values()]
    return "\n".join([_template(), *(file.read_text(encoding="utf-8") for file in CODE), *reasons])
