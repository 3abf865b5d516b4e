"""Plain functions that tests share."""

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file
from support.processes import Ended, Forks
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn.config.schema import Config, conf_dir
from unlearn.data.encoding import Example, Examples
from unlearn.data.readers import read, register
from unlearn.data.rows import DataSet
from unlearn.data.sets import tofu
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.grid.rules import parse
from unlearn.learning.loop import Loop
from unlearn.runs.job import execute as executed
from unlearn.store import runlog
from unlearn.store.identity import Job

UNTOUCHED = dict(os.environ)  # before any test changed it
ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # parity data beside the checkout, where there is any
TINY = (
    "data.people=4", "data.forget_people=1", "data.holdout_people=1", "data.known_people=2", "data.countries=2",
    "data.questions=3", "pair.batch_size=8", "pair.target.hidden_size=16", "pair.target.heads=2",
    "pair.target.intermediate_size=32", "pair.target.pretrain.epochs=1", "pair.target.finetune.epochs=2",
    "pair.small.hidden_size=8", "pair.small.heads=2", "pair.small.intermediate_size=16",
    "pair.small.pretrain.epochs=1", "pair.small.finetune.epochs=1", "pair.small.general.epochs=1",
    "trainer.forget_batch=2", "trainer.retain_batch=4", "trainer.steps=2", "trainer.eval_every=1",
    "trainer.progress=false", "trainer.device=cpu", "eval.groups=[]", "eval.max_new_tokens=10",
    "eval.leak_samples=2", "eval.resamples=20", "wandb=disabled",
)  # fmt: skip
PLAIN = re.compile(r"[\w./-]+", re.ASCII)  # a path that is no expression, and no number
FEW = ("eval.resamples=0", "eval.max_examples=4")  # where the evaluation is not looked at
OWN = [o for o in TINY if not o.startswith("data.")]  # of runs on a data set of one's own
GROUPS = {group: sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml"))
          for group in ("algo", "method", "pair", "data", "eval", "trainer", "wandb")}  # fmt: skip
ALGOS, METHODS = GROUPS["algo"], GROUPS["method"]
COMBINED = ("finetune", "gd", "kl", "npo_kl")  # of terms that other objectives have
EACH_TERM = [pytest.param(a, marks=pytest.mark.nightly if a in COMBINED else ()) for a in ALGOS]
TRAINED = [m for m in METHODS if not m.startswith("dd")]


def fits(algo: str, method: str) -> bool:
    """Whether a method takes an objective: reversed ones belong to uld, and hidden states to a white box."""
    return (algo == "uld") == (method == "uld") and (algo != "rmu" or method in ("direct", "eul"))


register()


def raw(*overrides: str) -> DictConfig:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))


def compose(*overrides: str) -> Config:
    """The checked config of a call; where it names no file, it is checked once a session but for its folders."""
    others = tuple(o for o in overrides if not o.startswith("paths."))
    places = dict(o.removeprefix("paths.").split("=", 1) for o in overrides if o not in others)
    if "/" in "".join(others) or not all(map(PLAIN.fullmatch, places.values())):
        return parse(composed(*overrides))
    cfg = copy.deepcopy(_checked(others))
    return replace(cfg, paths=replace(cfg.paths, **places))


@cache
def _checked(overrides: tuple[str, ...]) -> Config:
    return parse(composed(*overrides))


def composed(*overrides: str) -> DictConfig:
    """The same, unchecked: its files are composed once a session, and its values set as Hydra sets them."""
    values = [o for o in overrides if not _chooses_files(o)]
    shared = tuple(takewhile(TINY.__contains__, values))
    try:
        cfg = copy.deepcopy(_valued(tuple(o for o in overrides if o not in values), shared))
        for value in values[len(shared) :]:
            _set(cfg, value)
    except OmegaConfBaseException:  # a key or type that is refused: in Hydra's own words
        return raw(*overrides)
    return cfg


@cache
def _valued(choices: tuple[str, ...], values: tuple[str, ...]) -> DictConfig:
    cfg = copy.deepcopy(_files(choices))
    for value in values:
        _set(cfg, value)
    return cfg


def _set(cfg: DictConfig, value: str) -> None:
    override = _parsed(value)
    OmegaConf.update(cfg, override.key_or_group, override.value())


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


@cache
def _chooses_files(override: str) -> bool:
    """Whether it is more than a value: a file of a group, or a key that is added or removed."""
    key, _, value = override.partition("=")
    return key.startswith(("+", "~")) or "@" in key or (ROOT / "conf" / key.replace(".", "/")).is_dir() or "{" in value


@cache
def _files(choices: tuple[str, ...]) -> DictConfig:
    """What files give, put together: one call of Hydra, a tenth of a second, gives the n-th file of every group."""
    chosen = [choice.partition("=")[::2] for choice in choices]
    if not all(name in GROUPS.get(group, ()) for group, name in chosen):
        return raw(*choices)
    cfg = copy.deepcopy(_of_each_group(None))
    for group, name in chosen:
        cfg[group] = _of_each_group(GROUPS[group].index(name))[group]
    return cfg


@cache
def _of_each_group(n: int | None) -> DictConfig:
    return raw(*(f"{group}={names[n]}" for group, names in GROUPS.items() if n is not None and n < len(names)))


def with_value(cfg: DictConfig, key: str, value: str) -> DictConfig:
    """A composed config with one value set, as no command line need be able to."""
    changed = copy.deepcopy(cfg)
    OmegaConf.update(changed, key, value)
    return changed


def job_of(cfg: Config) -> Job:
    """The job that a config asks for."""
    return runlog.job(cfg, read(cfg).fingerprint())


def execute(cfg: Config) -> Job:
    """Run a config in this process, as a job of a grid would."""
    job = job_of(cfg)
    dumper = get_omega_conf_dumper()  # what OmegaConf makes of the config, without a node for each value
    executed(job, yaml.dump(asdict(cfg), Dumper=dumper, sort_keys=False, allow_unicode=True, default_flow_style=False))
    return job


def run_and_export(store: Path, root: Path, *overrides: str):
    """Job and export folder of a tiny run."""
    from unlearn import export

    job = execute(compose(*TINY, f"paths.store={store}", f"paths.runs={root}/runs", "eval.groups=[]", *overrides))
    assert export.main([f"run={job.folder}", f"to={root}/out", "collapsed=yes"]) == 0
    return job, root / "out"


def broken(folder: Path) -> Path:
    """A rule of one's own that nothing can tell from a sound one before it computes: with it a job fails."""
    file = folder / "broken.py"
    file.write_text(
        "from unlearn.ensemble.combination import Logits\n\n\n"
        "def sum(base: Logits, change: Logits, alpha: float) -> Logits:\n"
        "    raise ZeroDivisionError('broken on purpose')\n"
    )
    return file


class Killed(BaseException):
    """Stands for a signal: nothing in the program catches it."""


def raising_at(step: int, error: BaseException):
    """In the place of ``Loop.run``: the same, but that an error is raised before its step 0, 1, 2 …"""

    def run(self, micro_batches, *after, real=Loop.run):
        def until(n: int):
            if n == step:
                raise error
            return micro_batches(n)

        return real(self, until, *after)

    return run


def killed_at(step: int, cfg: Config, monkeypatch) -> Path:
    """Run a config until it is killed before its step 0, 1, 2 …; the folder it leaves."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Loop, "run", raising_at(step, Killed()))
        execute(cfg)
    return job_of(cfg).folder


def lines(folder: Path) -> list[dict]:
    """What a run logged, step by step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run kept."""
    return load_file(folder / "offset" / "model.safetensors")


def python(*arguments: str, cwd: Path = ROOT, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that finds the program from any folder."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=_environment() | environment, capture_output=True,
                          text=True, timeout=1200, check=check)  # fmt: skip


def command(
    module: str, *arguments: str, cwd: Path, check: bool = True, fresh: bool = False
) -> subprocess.CompletedProcess[str] | Ended:
    """The true command line, from another folder than the checkout; ``fresh``: in a process that imports everything."""
    if fresh:
        done = python("-m", module, *arguments, cwd=cwd, check=False)
    else:
        done = forked(module, *arguments, cwd=cwd)
    if check and done.returncode:
        raise AssertionError(f"{module} {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def forked(module: str, *arguments: str, cwd: Path, **how) -> Ended:
    """A call in a fork of a process that has imported the program; ``how`` it is killed: see ``Forks.call``."""
    return forks().call(module, arguments, cwd, _environment(), **how)


def forked_together(module: str, *arguments: str, cwds: Sequence[Path], **each: Sequence[Any]) -> list[Ended]:
    """The same command in several folders at once, counting commits; ``each``: lists of what differs (kill, late)."""
    usual = {"kill": "", "late": 0.0, "by": ["SIGKILL"], "limit": 300}
    calls = [
        usual | {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": _environment()}
        | {name: values[n] for name, values in each.items()}
        for n, cwd in enumerate(cwds)
    ]  # fmt: skip
    return forks().calls(calls)


def _environment() -> dict[str, str]:
    """Of a call: without what another one tells the processes that it starts itself."""
    return {k: v for k, v in os.environ.items() if k not in ("WANDB_SERVICE", runlog.COMMAND)} | {
        "PYTHONPATH": str(ROOT)
    }


@cache
def forks() -> Forks:
    return Forks()


def shared_store(tmp_path_factory) -> Path:
    """The same folder for all workers of a parallel test session; the store itself makes that safe."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "store"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tiny_llama(seed: int, hidden: int = 16, vocabulary: int = 40) -> LlamaForCausalLM:
    """Random weights, large enough that its argmax is not always the same token."""
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=2 * hidden, initializer_range=0.5, max_position_embeddings=64, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def offset_ensemble(target, offset, anchor) -> Ensemble:
    trained = Member("offset", offset, "o", 0.0, 1.0, True), Member("anchor", anchor, "a", 0.0, -1.0, False)
    return Ensemble((Member("target", target, "t", 1.0, 0.0, False), *trained))


def near(model, scale: float, seed: int = 9):
    """A copy whose weights are a little different, as those of a trained offset are."""
    changed, random = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in changed.parameters():
            p += scale * p.std() * torch.randn(p.shape, generator=random)
    return changed


def same_pair(model, offset) -> Ensemble:
    """Target and anchor are one model, as they are where a model unlearns for itself."""
    trained = Member("offset", offset, "o", 0.0, 1.0, True), Member("anchor", model, "t", 0.0, -1.0, False)
    return Ensemble((Member("target", model, "t", 1.0, 0.0, False), *trained))


def direct(target, tuned) -> Ensemble:
    return Ensemble((Member("target", target, "t", 1.0, -1.0, False), Member("tuned", tuned, "t", 0.0, 1.0, True)))


def build(reader: ModuleType, seed: int = 0, **settings) -> DataSet:
    """A made-up world of a seed, from settings alone."""
    return reader.read(reader.Settings(**settings), seed)


def read_tofu(path: str | None, forget: str, retain_rows: int | None, refusals: str | None = None) -> DataSet:
    return tofu.read(tofu.Settings(path=path, forget=forget, retain_rows=retain_rows, refusals=refusals))


def random_examples(count: int = 7, seed: int = 0, vocabulary: int = 40) -> Examples:
    """Prompts and answers of different lengths; answers end with EOS (1), nothing else holds special tokens."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(2, vocabulary, (length,), generator=generator).tolist())

    return Examples(Example(f"e{i}", tokens(2, 9), (*tokens(1, 8), 1)) for i in range(count))


def whole(path: Path) -> None:
    """Wait until a finished W&B run's file is whole: wandb's service goes on writing it for a moment."""
    from wandb.proto.wandb_internal_pb2 import Record

    from analysis.sources.transaction_log import Frames

    deadline = time.monotonic() + 30
    while not any(Record.FromString(data).WhichOneof("record_type") == "exit" for data in Frames(path)):
        assert time.monotonic() < deadline, f"{path} was not finished"
        time.sleep(0.02)
