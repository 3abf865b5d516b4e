"""The trained member of a run: where it begins, and how its weights are kept and read again.

It may begin at other runs: what they learnt, fused into one (``begin.how``). ``sum``: the frozen start plus
Σ_j a_j Δ_j, Δ_j the change of run j's weights (task arithmetic, arXiv 2212.04089); unlearning layers are put side by
side, so that the changes of their blocks add up. ``average``: the start plus the mean of the changes, or of the layers.
``regmean``: layers in closed form (EUL, arXiv 2310.20150), from the inner products that each run kept.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearn.config.derived import tuning
from unlearn.config.pair import ADAPTER_FILE, GRAM
from unlearn.config.schema import BeginConfig, Config, ConfigError
from unlearn.data.encoding import examples_of
from unlearn.ensemble.combination import bind_rule
from unlearn.ensemble.ensemble import Ensemble
from unlearn.learning.loop import limit_threads
from unlearn.models import llama
from unlearn.models.tuning import LAYER, has_layers, has_updates, is_lora, learner, learnt, merged, put, save_updates
from unlearn.runs.workbench import Workbench, frozen_ensemble
from unlearn.store import runlog, seal
from unlearn.store.files import write_whole
from unlearn.store.progress import show_bars
from unlearn.store.runlog import RunLog

if TYPE_CHECKING:
    from unlearn.models.fusion import Fused

log = logging.getLogger(__name__)
WEIGHTS = f"{runlog.OFFSET}/model.safetensors"
LAYERS, PRODUCTS = f"{runlog.ADAPTER}/{ADAPTER_FILE}", f"{runlog.ADAPTER}/{GRAM}"


def initialise(cfg: Config) -> None:
    """Threads, seeds and quiet libraries: the same at the start of every job, whichever process it shares."""
    transformers.utils.logging.disable_progress_bar()  # our own bars cover loading and saving
    limit_threads(cfg.trainer.threads)
    show_bars(cfg.trainer.progress)
    torch.manual_seed(cfg.seed)


def members(cfg: Config, bench: Workbench, folder: Path | None = None) -> Ensemble:
    """The method's members: frozen models are shared; the trained one is a copy that is ready to learn (with LoRA, a
    view of the same weights), or what ``folder``, a run's, holds of it."""
    m, how = cfg.method, tuning(cfg)
    ensemble = frozen_ensemble(m.members, bench, bind_rule(m.rule, m.numbers, m.file))
    if folder is not None:
        _check(folder, ensemble)
    if ensemble.trained is None:
        return ensemble
    start = ensemble.trained.model
    if folder is None:
        model = learner(start, how, cfg.pair, cfg.seed)
    elif (folder / runlog.ADAPTER).is_dir():
        model = llama.freeze(learnt(start, folder / runlog.ADAPTER))
    else:
        model = llama.freeze(llama.load(folder / runlog.OFFSET, next(start.parameters()).device))
    return replace(ensemble, members=tuple(replace(x, model=model) if x.trained else x for x in ensemble.members))


def trainable(model: nn.Module) -> dict[str, float]:
    """How many parameters learn, and their share of all that the trained member has."""
    count = llama.parameters(model, trainable=True)
    return {"trainable": count, "trainable_share": round(count / llama.parameters(model), 6)}


def _check(folder: Path, ensemble: Ensemble) -> None:
    """Offsets, rows and metrics of other weights do not mix: a store may have been deleted and trained otherwise."""
    prints, manifest = {m.name: m.fingerprint for m in ensemble.members}, runlog.manifest(folder)
    before = manifest.get("models", prints)
    if {name: before.get(name) for name in prints} != prints:
        rule = "use the store it was made with, or remove the folder to train it again"
        raise ConfigError(f"{folder} was trained with the models {before}, and the store now has {prints}; {rule}")
    seal.check_weights(folder, manifest)


def keep(cfg: Config, bench: Workbench, model: nn.Module, run: Path, place: str | None = None) -> None:
    """Write what a run trained into its folder, or ``place`` in it: a whole model, or what was added to one, without
    the model. Unlearning layers come with the request's inner products, which fusion needs, and nothing else."""

    def whole(folder: Path) -> None:
        model.save_pretrained(folder)
        bench.encoder.tokenizer.save_pretrained(folder)

    usual, write = runlog.ADAPTER, partial(save_updates, model, cfg.pair.lora)
    if has_layers(model):
        write = partial(_save_layers, cfg, bench, model)
    elif not has_updates(model):
        usual, write = runlog.OFFSET, whole
    write_whole(run / (place or usual), write)


def _save_layers(cfg: Config, bench: Workbench, model: nn.Module, folder: Path) -> None:
    from unlearn.models import fusion, layers  # a second of imports, by peft

    layers.save(model, folder)
    examples = examples_of(bench.encoder, bench.data.splits["forget"])
    save_file(products(cfg) or fusion.gram(model, examples, bench.pad_id, cfg.eval.batch_size), folder / GRAM)


def same_models(cfg: Config, bench: Workbench, record: RunLog, ensemble: Ensemble) -> None:
    """An unfinished run resumes only with the models it began with; with others it starts again. A teacher's are made
    here, too, so that their training is not counted as the run's own."""
    prints = {m.name: m.fingerprint for m in ensemble.members}
    if cfg.algo.teacher is not None and ensemble.trained is not None:
        prints |= {f"teacher/{m.name}": bench.fingerprint(m.model) for m in cfg.algo.teacher.members}
    before = record.manifest.get("models", prints)
    if before != prints:
        log.warning("the models of %s changed from %s to %s: it starts again", record.folder.name, before, prints)
        shutil.rmtree(record.folder / runlog.CHECKPOINT, ignore_errors=True)
    record.status("running", models=prints)


# --- where it begins ------------------------------------------------------------------------------------------------


@torch.no_grad()
def take_over(model: nn.Module, cfg: BeginConfig, fingerprint: str) -> dict[str, Any]:
    """Put what ``cfg.runs`` learnt into a fresh learner, whose frozen start has this fingerprint; what the manifest
    says of it. ``ConfigError`` for a run that began with other weights, or whose weights have other names or shapes;
    ``FileError`` for weights that are not those it ended with."""
    manifests = [_manifest(Path(folder), fingerprint) for folder in cfg.runs]
    layered, residuals = has_layers(model), {}
    how = cfg.fusion(layered)
    if layered:
        residuals = _put_layers(model, cfg, how)
        if how != "sum" and len({m["seed"] for m in manifests}) > 1:
            log.warning("begin.runs: began with different layers (seed): the units of their bottlenecks do not match")
    else:
        _add_changes(model, cfg, how)
    log.info("Begins at %d runs by %s", len(cfg.runs), how)
    if residuals:
        worst = max(residual["outputs"] for residual in residuals.values())
        log.info("Changed at most %.1f %% of a linear's outputs on the requests", 100 * worst)
    runs = [{"run": Path(folder).resolve().name, "data": m.get("data"), "weights": m[seal.WEIGHTS]}
            for folder, m in zip(cfg.runs, manifests, strict=True)]  # fmt: skip
    return {"how": how, "runs": runs, "residuals": residuals}


def _add_changes(model: nn.Module, cfg: BeginConfig, how: str) -> None:
    began = copy.deepcopy(model)
    start = dict(began.named_parameters())
    shares = cfg.weights() if how == "sum" else [1 / len(cfg.runs)] * len(cfg.runs)
    for folder, share in zip(cfg.runs, shares, strict=True):
        adapter = Path(folder) / runlog.ADAPTER  # low-rank updates: the weights that hold them
        whole = (Path(folder) / WEIGHTS).is_file() or not is_lora(adapter)
        ended = _table(folder, WEIGHTS) if whole else dict(merged(learnt(began, adapter)).named_parameters())
        for name, parameter in model.named_parameters():
            found = ended.get(name)
            shape = "none" if found is None else list(found.shape)
            if shape != list(parameter.shape):
                rule = f"its offset must have {name} of shape {list(parameter.shape)}, and has {shape}"
                raise ConfigError(f"begin.runs={folder!r}: {rule}: it is another model")
            parameter += share * (found.to(parameter) - start[name])


def _put_layers(model: nn.Module, cfg: BeginConfig, how: str) -> dict[str, Any]:
    from unlearn.models import layers  # with pair.tuning=unlearning_layers alone

    places = [m for m in model.modules() if isinstance(m, layers.UnlearningLayer)]
    own = places[0].activation
    try:
        fused = fused_layers(cfg.runs, how, cfg.ridge)
        found = [layers.read_config(Path(folder) / runlog.ADAPTER).activation for folder in cfg.runs]
        if set(found) != {own}:
            raise ConfigError(f"begin.runs: pair.layers.activation must be {own!r} in all runs, and is {found}")
        if how == "sum":
            width = next(len(w) for name, w in fused.weights.items() if layers.DOWN in name)
            for place in places:
                place.widen(width)
        put(model, LAYER, fused.weights, ", ".join(cfg.runs))
    except layers.LayerError as error:
        raise ConfigError(f"begin.runs: {error}") from None
    return {name: asdict(residual) for name, residual in fused.residuals.items()}


def fused_layers(runs: Sequence[str | Path], how: str, ridge: float) -> Fused:
    """The runs' layers made into one; residuals of ``regmean`` alone. ``LayerError`` for those that do not fit."""
    from unlearn.models import fusion

    own = [_table(folder, LAYERS) for folder in runs]
    if how == "regmean":
        return fusion.fuse(own, [_table(folder, PRODUCTS) for folder in runs], ridge)
    return fusion.Fused((fusion.average if how == "average" else fusion.summed)(own), {})


def products(cfg: Config) -> dict[str, Tensor] | None:
    """The inner products of a fusion in closed form, the sum of its runs': it can be fused on with later requests.
    None for a run that learns something itself, or was fused in another way."""
    if not cfg.begin.runs or cfg.trainer.steps != 0 or cfg.begin.fusion(layered=True) != "regmean":
        return None
    found = [_table(folder, PRODUCTS) for folder in cfg.begin.runs]
    return {name: sum(each[name] for each in found) for name in found[0]}


def _table(folder: str | Path, name: str) -> dict[str, Tensor]:
    path = Path(folder) / name
    if not path.is_file():
        raise ConfigError(f"begin.runs={str(folder)!r}: {name} is missing; needs a run of the same tuning")
    return load_file(path)


def _manifest(folder: Path, fingerprint: str) -> dict[str, Any]:
    """Of a run whose weights are sound and whose trained member began as the model of this fingerprint."""
    manifest = runlog.manifest(folder)
    seal.check_weights(folder, manifest)
    models = manifest.get("models")
    if not manifest.get("trained") or fingerprint not in (models or {}).values():
        why = f"and what learns here begins as {fingerprint}; its change is the change of another model"
        raise ConfigError(f"begin.runs={str(folder)!r}: was made with the models {models}, {why}")
    return manifest
