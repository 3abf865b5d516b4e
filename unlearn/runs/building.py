"""Models of a pair that are trained here, stage by stage, from scratch or from a pretrained one.

A stage is found in the store by its recipe (size, training data, schedule, seed and the weights it starts from), so
target and retrained reference share their pretraining and every job shares everything.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn.config.pair import ModelConfig, StageConfig
from unlearn.config.schema import ConfigError
from unlearn.data import spans
from unlearn.data.encoding import Example, Examples, collate, examples_of
from unlearn.data.rows import Row
from unlearn.data.sampling import epoch_batches
from unlearn.learning.answers import Answers
from unlearn.learning.loop import Diverged, Loop, Optimisation
from unlearn.models import hub, llama, seq2seq, tokenizers
from unlearn.store import sources
from unlearn.store.progress import progress

if TYPE_CHECKING:
    from unlearn.runs.workbench import Workbench

log = logging.getLogger(__name__)
SHAPE = ("hidden_size", "layers", "heads", "intermediate_size", "initializer_range", "max_length")  # from scratch


Start = tuple[Path, str]  # weights that a stage begins with, and their key in its recipe


def trained(bench: Workbench, role: str) -> Path:
    """A model that knows the general facts and, by its role, nothing else, all, or all but the forget set."""
    pair, data, size = bench.cfg.pair, bench.data, sources.size_of(bench.cfg.pair, role)
    known = {"small_general": data.general, "small_retain": data.unnamed, "retrained": data.left}
    rows = known.get(role, data.known)()
    # The small model's seed differs from the target's, or its first weights would be a slice of the same draw.
    seed = 2 * pair.seed + (size is pair.small)
    start, stage = None, sources.last_stage(pair, role)
    if size.source is not None:
        folder = hub.locate(f"pair.{'small' if size is pair.small else 'target'}.source", size)
        start = folder, sources.content(folder, bench.store.root / "hashes")
    if size.pretrain.epochs and data.wordings:
        label = f"{'small' if size is pair.small else 'large'} model, general facts in every wording"
        start = _stage(bench, size, size.pretrain, data.wordings, seed, start, label)
    if start is not None and not stage.epochs:
        return start[0]
    return _stage(bench, size, stage, rows, seed, start, f"{role} model")[0]


def _stage(
    bench: Workbench,
    size: ModelConfig,
    stage: StageConfig,
    rows: Sequence[Row],
    seed: int,
    start: Start | None,
    label: str,
) -> Start:
    """A stage teaches each row's answer and, where ``texts`` asks for it, its question as a text."""
    pair, encoder = bench.cfg.pair, bench.encoder
    if stage.epochs and not rows:
        rule = f"has no general facts to train the {label} on; take pair.offset_init=retain or full"
        raise ConfigError(f"data set {bench.data.name!r} {rule}")
    training = examples_of(encoder, rows)
    if size.texts:
        masks = size.architecture == "t5" if size.source is None else hub.has_encoder(start[0])
        training = Examples([*training, *spans.examples(encoder, rows, masks)])
    vocabulary = tokenizers.size(encoder.tokenizer)
    recipe: dict[str, Any] = {
        "stage": asdict(stage), "batch_size": pair.batch_size, "warmup": pair.warmup,
        "examples": training.fingerprint, "seed": seed, "parent": start and start[1],
    }  # fmt: skip
    if size.source is None:
        recipe |= {"shape": {k: getattr(size, k) for k in SHAPE}, "vocabulary": vocabulary}
        recipe |= {} if size.architecture == "llama" else {"architecture": size.architecture}

    def build(folder: Path) -> None:
        if start is None:
            fresh = seq2seq.fresh if size.architecture == "t5" else llama.fresh
            model = fresh(size, vocabulary, encoder.tokenizer.pad_token_id, encoder.tokenizer.eos_token_id, seed)
        else:
            model = llama.load(start[0])
        count = f"{llama.parameters(model):,}"
        log.info("training the %s: %s parameters, %d examples × %d epochs", label, count, len(training), stage.epochs)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)  # pretrained models may have dropout; the run's seed must not reach their training
            model = _fit(model, training, stage, bench, seed, label)
        model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)

    folder = bench.store.get("model", recipe, build)
    return folder, folder.name


def _fit(
    model: nn.Module, training: Examples, stage: StageConfig, bench: Workbench, seed: int, label: str
) -> nn.Module:
    """Plain supervised training on answer tokens."""
    pair = bench.cfg.pair
    lengths = [len(e.prompt) + len(e.answer) for e in training]
    per_epoch = len(epoch_batches(lengths, pair.batch_size, seed, 0))
    settings = Optimisation(stage.lr, per_epoch * stage.epochs, pair.warmup, 0.1, "cosine", 0.0, (0.9, 0.98), 1.0)
    loop = Loop(model.train(), settings, bench.cfg.trainer.device)
    batches = lru_cache(maxsize=1)(partial(epoch_batches, lengths, pair.batch_size, seed))  # of an epoch

    def drawn(step: int) -> list[Example]:
        epoch, at = divmod(step, per_epoch)
        return [training[i] for i in batches(epoch)[at]]

    def nll(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = collate(drawn(step), bench.pad_id).to(loop.accelerator.device)
        return -Answers(llama.answer_rows(loop.model, batch), batch.labels, batch.owner).logp.mean(), {}

    with progress(settings.steps, f"training the {label}") as bar:
        try:
            loop.run(lambda step: [partial(nll, step)], lambda step, log: bar.update())
        except Diverged as error:
            raise error.reading({label: [example.id for example in drawn(loop.step)]}) from None
    return loop.model
