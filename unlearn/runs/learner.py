"""The trained member of a run: where it begins, and how its weights are kept and read again."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from unlearn.config.derived import tuning
from unlearn.config.pair import GRAM
from unlearn.config.schema import Config, ConfigError
from unlearn.data.encoding import examples_of
from unlearn.ensemble.combination import bind_rule
from unlearn.ensemble.ensemble import Ensemble
from unlearn.learning.loop import limit_threads
from unlearn.models import llama
from unlearn.models.tuning import has_layers, has_updates, learner, learnt, merged, save_updates
from unlearn.runs import begin
from unlearn.runs.workbench import Workbench, frozen_ensemble
from unlearn.store import runlog, seal
from unlearn.store.files import write_whole
from unlearn.store.runlog import RunLog

log = logging.getLogger(__name__)


def initialise(cfg: Config) -> None:
    """Threads, seeds and quiet libraries: the same at the start of every job, whichever process it shares."""
    transformers.utils.logging.disable_progress_bar()  # our own bars cover loading and saving
    limit_threads(cfg.trainer.threads)
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
    elif (folder / runlog.ADAPTER).is_dir():  # as after training: updates beside the weights, not rounded into them
        model = llama.freeze(learnt(start, how, cfg.pair, folder / runlog.ADAPTER))
    else:
        model = llama.freeze(llama.load(folder / runlog.OFFSET, next(start.parameters()).device))
    return replace(ensemble, members=tuple(replace(x, model=model) if x.trained else x for x in ensemble.members))


def trainable(model: nn.Module) -> dict[str, float]:
    """How many parameters learn, and their share of all that the trained member has."""
    count = llama.parameters(model, trainable=True)
    return {"trainable": count, "trainable_share": round(count / llama.parameters(model), 6)}


def _check(folder: Path, ensemble: Ensemble) -> None:
    """Offsets, rows and metrics of other weights do not mix. They differ when the store was deleted and models were
    trained again on other hardware or with other versions."""
    prints, manifest = {m.name: m.fingerprint for m in ensemble.members}, runlog.manifest(folder)
    before = manifest.get("models", prints)
    if {name: before.get(name) for name in prints} != prints:
        raise ConfigError(
            f"{folder} was trained with the models {before}, and the store now has {prints}; "
            "use the store it was made with, or remove the folder to train it again"
        )
    seal.check_weights(folder, manifest)


def keep(cfg: Config, bench: Workbench, model: nn.Module, run: Path, place: str = runlog.OFFSET) -> None:
    """Write the trained weights into a run's folder: a whole model to ``place``, and LoRA's updates beside the last.

    Unlearning layers, which no plain model can hold, are written alone, with what their fusion needs of the request:
    inner products, and nothing else.
    """
    adapter = run / (runlog.ADAPTER if place == runlog.OFFSET else place)
    if has_layers(model):
        write_whole(adapter, partial(_save_layers, cfg, bench, model))
        return
    if has_updates(model) and place == runlog.OFFSET:
        write_whole(adapter, partial(save_updates, model, cfg.pair.lora))

    def write(folder: Path) -> None:
        merged(model).save_pretrained(folder)
        bench.encoder.tokenizer.save_pretrained(folder)

    write_whole(run / place, write)


def _save_layers(cfg: Config, bench: Workbench, model: nn.Module, folder: Path) -> None:
    from unlearn.models import fusion, layers  # a second of imports, by peft

    layers.save(model, folder)
    examples = examples_of(bench.encoder, bench.data.splits["forget"])
    save_file(begin.products(cfg) or fusion.gram(model, examples, bench.pad_id, cfg.eval.batch_size), folder / GRAM)


def same_models(cfg: Config, bench: Workbench, record: RunLog, ensemble: Ensemble) -> None:
    """An unfinished run goes on only with the models it began with; with others it starts again.

    A teacher's models are made here, too, so that their training is not counted as the run's own.
    """
    prints = {m.name: m.fingerprint for m in ensemble.members}
    if cfg.algo.teacher is not None and ensemble.trained is not None:
        prints |= {f"teacher/{m.name}": bench.fingerprint(m.model) for m in cfg.algo.teacher.members}
    before = record.manifest.get("models", prints)
    if before != prints:
        log.warning("the models of %s changed from %s to %s: it starts again", record.folder.name, before, prints)
        shutil.rmtree(record.folder / runlog.CHECKPOINT, ignore_errors=True)
    record.status("running", models=prints)
