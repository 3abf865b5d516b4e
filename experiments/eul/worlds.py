"""The models of one world of the study: the original, those trained again without somebody, runs that unlearn; and one
way to measure any of them. What is in the store or done is not made again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sisa import SHARDS, Vote, affected, outside, shard

from unlearn.config.schema import Config, conf_dir
from unlearn.data.readers import read, register
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation import evaluation
from unlearn.grid.rules import parse
from unlearn.models import layers, llama
from unlearn.runs import job as jobs
from unlearn.runs.baselines import suite_of
from unlearn.runs.learner import fused_layers
from unlearn.runs.workbench import workbench
from unlearn.store import runlog
from unlearn.store.identity import Job
from unlearn.store.runlog import job

register()
FIXED = (
    "pair=t5", "eval=tasks", "study=eul", "eval.retrained=none", "eval.max_examples=150", "eval.max_new_tokens=40",
    "eval.resamples=0", "trainer.eval_every=1000", "trainer.save_every=0", "trainer.progress=false",
    "trainer.forget_batch=20", "trainer.retain_batch=60", "wandb=disabled",
)  # fmt: skip
MEASURES = ("accuracy", "rouge1_f1", "rouge2_f1", "rougeL_f1", "prob", "mlm_loss")
SECONDS = Path("runs", "eul", "seconds.json")  # of the models that were trained: by their folder in the store

Row = dict[str, float]


def config(*overrides: str) -> Config:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return parse(compose("config", overrides=[*FIXED, *overrides]))


class StudyWorld:
    """One world (``pair.seed``) of one data set."""

    def __init__(self, data: str, seed: int):
        self.data, self.seed = data, seed
        self.people = config(f"data={data}").data.people

    def own(self, forget: Sequence[int], gone: Sequence[int] = (), *overrides: str) -> Config:
        """The world with these people to be forgotten, and these in no split."""
        asked = f"data.forget={list(forget)}", f"data.gone={list(gone)}"
        return config(f"data={self.data}", f"pair.seed={self.seed}", *(a.replace(" ", "") for a in asked), *overrides)

    @cached_property
    def original(self) -> Path:
        """The model that knows everybody."""
        last = [self.people - 1]
        self._timed(self.own(last, (), "pair.target.finetune.epochs=0"), "target")  # pretrained: all models share it
        return self._timed(self.own(last), "target")

    def retrained(self, forget: Sequence[int], gone: Sequence[int] = (), role: str = "retrained") -> Path:
        """Trained without them; ``role="target"``: with them, but not with those who are gone."""
        tokenizer = "pair.tokenizer.kind=pretrained", f"pair.tokenizer.source={self.original}"
        return self._timed(self.own(forget, gone, *tokenizer), role)

    def unlearning(self, forget: Sequence[int], gone: Sequence[int] = (), *overrides: str) -> Config:
        """A run that begins with the original as it is."""
        source = (f"pair.target.source={self.original}", "pair.tokenizer.kind=pretrained",
                  "pair.target.pretrain.epochs=0", "pair.target.finetune.epochs=0")  # fmt: skip
        return self.own(forget, gone, *source, *overrides)

    def shards(self, forget: Sequence[int] = ()) -> tuple[list[Path], float]:
        """SISA's models after a request, and the seconds of those that were trained for it."""
        folders, seconds = [], 0.0
        for own in range(SHARDS):
            asked = [i for i in forget if shard(i) == own]
            some = next(i for i in range(self.people) if shard(i) == own)
            role = "retrained" if asked else "target"
            folders.append(self.retrained(asked or [some], outside(own, self.people), role))
            seconds += self.seconds(folders[-1]) if own in affected(forget) or not forget else 0.0
        return folders, seconds

    def seconds(self, folder: Path) -> float:
        return json.loads(SECONDS.read_text()).get(folder.name, float("nan"))

    def _timed(self, cfg: Config, role: str) -> Path:
        begun = time.perf_counter()
        folder = workbench(cfg).folder(role)
        took = round(time.perf_counter() - begun, 3)
        SECONDS.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(SECONDS.with_suffix(".lock")):
            known = json.loads(SECONDS.read_text()) if SECONDS.is_file() else {}
            if folder.name not in known:
                SECONDS.write_text(json.dumps(known | {folder.name: took}, indent=1))
        return folder


def run(cfg: Config) -> Job:
    """Train and evaluate, unless that is done."""
    found = job(cfg, read(cfg).fingerprint())
    if not runlog.is_done(found):
        jobs.execute(found, OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    return found


def measured(cfg: Config, ensemble: Ensemble) -> Row:
    """EUL's measures on the splits of a config's data set."""
    world = workbench(cfg)
    entries, _ = evaluation.evaluate(ensemble, suite_of(cfg, world), [1.0], None, None)
    return chosen(entries[1.0])


def of_run(found: Job) -> Row:
    """The same of a run, with its seconds and whether it collapsed."""
    manifest = runlog.manifest(found.folder)
    entry = json.loads((found.folder / "eval.json").read_text())["alphas"]["1.0"]
    return chosen(entry) | {"seconds": manifest["seconds"]["train"], "collapsed": float(bool(manifest["collapsed"]))}


def chosen(entry: dict) -> Row:
    return {k: v for k, v in entry.items() if isinstance(v, float) and k.rsplit("/", 1)[-1] in MEASURES}


def alone(folder: Path, name: str = "model") -> Ensemble:
    return Ensemble((Member(name, llama.freeze(llama.load(folder)), "", 1.0, 0.0, False),))


def vote(folders: Sequence[Path]) -> Vote:
    return Vote(tuple(replace(alone(f, f"shard{i}").members[0]) for i, f in enumerate(folders)))


def joined(cfg: Config, runs: Sequence[Job], how: str) -> tuple[Ensemble, Row]:
    """The target with the layers of several requests made one: fuse, average or sum; and what the fusion says."""
    fused = fused_layers([r.folder for r in runs], "regmean" if how == "fuse" else how, 1e-6)
    about = {"outputs_changed": max(r.outputs for r in fused.residuals.values())} if fused.residuals else {}
    some = next(w for name, w in fused.weights.items() if layers.DOWN in name)
    model = layers.add(workbench(cfg).model("target"), replace(cfg.pair.layers, bottleneck=len(some)), seed=0)
    layers.put(model, fused.weights, how)
    return Ensemble((Member("student", llama.freeze(model), "", 1.0, 0.0, False),)), about
