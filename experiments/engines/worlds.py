"""Runs and exports that the checks serve: of pretrained models in a folder, or of tiny ones that are trained first."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.ensemble import Ensemble, add
from unlearn.grid.rerun import open_run
from unlearn.models import llama
from unlearn.runs import workbench
from unlearn.runs.opened import Opened

TOPICS = Path(__file__).resolve().parents[1] / "real" / "topics"
KEPT = ("retain.jsonl", "neighbours_trained.jsonl")
LAYERS = 6  # of the smaller member that is cut out of SmolLM2
COMMON = ("algo=npo", "trainer.steps=4", "trainer.forget_batch=4", "trainer.retain_batch=4", "trainer.eval_every=0",
          "trainer.threads=1", "trainer.device=cpu", "trainer.progress=false", "eval.groups=[]", "eval.max_examples=2",
          "eval.retrained=none", "wandb=disabled")  # fmt: skip


@dataclass(frozen=True)
class World:
    """One or more runs of one pair, and the export of their sum."""

    name: str
    runs: tuple[Path, ...]
    folder: Path  # the export
    settings: tuple[str, ...]  # of the first run

    @cached_property
    def opened(self) -> list[Opened]:
        found = [open_run(run, []) for run in self.runs]
        for other in found[1:]:
            other.bench.adopt(found[0].bench)
        return found

    @property
    def encoder(self):
        return self.opened[0].bench.encoder

    @property
    def target(self) -> Path:
        return self.opened[0].bench.folder("target")

    @property
    def small(self) -> Path:
        """The model that the offset began as."""
        return self.opened[0].bench.folder("small")

    @cached_property
    def ensemble(self) -> Ensemble:
        """At α = 1."""
        parts = [run.ensemble for run in self.opened]
        if len(parts) == 1:
            return parts[0]
        for i, part in enumerate(parts):  # by what they began as, offset and anchor would be one model
            own = replace(part.trained, name=f"offset_{i}", fingerprint=llama.fingerprint(part.trained.model))
            parts[i] = Ensemble(tuple(own if m.trained else m for m in part.members))
        return add(parts, [1.0] * len(parts))

    def hold(self, dtype: str) -> None:
        """All models in float32, as vLLM then holds them; for another type each as the run does."""
        for m in self.ensemble.members if dtype == "float32" else ():
            m.model.float()

    def release(self) -> None:
        """Give the models back; they are loaded again when somebody asks for them."""
        for name in ("opened", "ensemble"):
            self.__dict__.pop(name, None)
        workbench._latest.clear()  # which keeps the last world of a process for its next job
        gc.collect()

    def questions(self, most: int) -> list[str]:
        return [row.question for rows in self.opened[0].bench.data.splits.values() for row in rows][:most]

    def prompts(self, most: int) -> list[list[int]]:
        return [list(self.encoder.prompt(question)) for question in self.questions(most)]

    def answers(self, prompts: list[list[int]], tokens: int, of: Ensemble | None = None) -> list[list[int]]:
        """Greedy answers as ``unlearn.generate`` gives them; of the unlearned model, or another."""
        return greedy(of or self.ensemble, prompts, 1.0, Decoding.by(self.encoder.tokenizer, tokens))

    @torch.no_grad()
    def rows(self, ids: list[int]) -> Tensor:
        """Log-probabilities of the sum after each token, [S, V] in fp32."""
        found = {m.name: m.model(torch.tensor([ids])).logits[0].float() for m in self.ensemble.members}
        return self.ensemble.logits(found, 1.0).log_softmax(-1)


def pretrained(target: Path, small: Path, topic: str, lr: str) -> list[str]:
    of = TOPICS / topic
    return [
        "pair=pretrained", f"pair.target.source={target}", f"pair.small.source={small}", "template=chat",
        "data=jsonl", f"data.forget={of}/forget.jsonl", f"data.retain=[{','.join(f'{of}/{name}' for name in KEPT)}]",
        f"data.neighbours={of}/neighbours.jsonl", f"data.world_facts={of}/others.jsonl", f"trainer.lr={lr}",
    ]  # fmt: skip


def made(name: str, settings: dict[str, list[str]], work: Path) -> World:
    """The world of runs with these settings, by study; runs and export are made where they are not there yet."""
    runs = tuple(_run(study, asked, work) for study, asked in settings.items())
    folder = work / "exports" / name
    if not (folder / "config.json").is_file():
        others = [f"offsets=[{','.join(map(str, runs[1:]))}]"] if runs[1:] else []
        called("export", f"run={runs[0]}", *others, f"to={folder}", "collapsed=yes", f"paths.store={work}/store")
    return World(name, runs, folder, (*COMMON, *next(iter(settings.values()))))


def _run(study: str, settings: list[str], work: Path) -> Path:
    def found() -> list[Path]:
        return [path.parent for path in (work / "runs" / study).glob("*/eval.json")]

    if not found():
        called("run", *COMMON, *settings, f"study={study}", f"paths.runs={work}/runs", f"paths.store={work}/store")
    return found()[0]


def called(verb: str, *asked: str) -> None:
    subprocess.run([sys.executable, "-m", f"unlearn.{verb}", *asked], check=True)


def cut(model: Path, layers: int, to: Path) -> Path:
    """A smaller model of the same vocabulary: the first layers of ``model``, as they are."""
    if not (to / "config.json").is_file():
        to.mkdir(parents=True, exist_ok=True)
        weights = load_file(model / "model.safetensors")
        kept = {
            k: v
            for k, v in weights.items()
            if ".layers." not in k or int(k.split(".layers.")[1].split(".")[0]) < layers
        }
        save_file(kept, to / "model.safetensors", {"format": "pt"})
        for path in model.iterdir():
            if path.name not in ("model.safetensors", "config.json"):
                shutil.copy(path, to)
        about = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": layers}
        (to / "config.json").write_text(json.dumps(about))
    return to


def worlds(models: Path | None, work: Path, names: list[str]) -> dict[str, World]:
    """By name: ``equal``, ``smaller`` and ``two`` (requests, of the smaller pair), of SmolLM2 where there is a folder
    of models, else tiny; ``qwen``."""
    if models is None:
        two = ["data.requests=[[45,46],[47,48]]", "trainer.lr=1e-2"]
        wide = ["pair.small.hidden_size=128", "pair.small.intermediate_size=320"]
        settings = {"equal": [*two, "data.request=1", *wide]}
        two.append("pair.small.heads=2")  # of 32: vLLM has no smaller ones on a CPU
        settings |= {"smaller": [*two, "data.request=1"], "smaller-other": [*two, "data.request=2"]}
    else:
        smol, big = models / "smollm2", (models / "qwen15", models / "qwen05")
        small = cut(smol, LAYERS, work / "smollm2-cut") if {"smaller", "two"} & set(names) else smol
        settings = {
            "equal": pretrained(smol, smol, "novels", "2e-3"),
            "smaller": pretrained(smol, small, "novels", "2e-3"),
            "smaller-other": pretrained(smol, small, "japan", "2e-3"),
            "qwen": pretrained(*big, "novels", "2e-4"),
        }
    studies = {"two": ("smaller", "smaller-other")}
    return {name: made(name, {s: settings[s] for s in studies.get(name, (name,))}, work) for name in names}
