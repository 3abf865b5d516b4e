"""Everything a run needs before it can unlearn: data set, tokenizer, target, retrained reference, small pair.

Models are trained from scratch on the data set, stage by stage; a stage is found in the store by its recipe (size,
training data, schedule, seed and the weights it starts from), so target and retrained reference share their
pretraining and every job shares everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer

from unlearn.answers import Answers
from unlearn.combination import SUM, Rule
from unlearn.config import Config, MemberConfig, ModelConfig, StageConfig
from unlearn.data.encoding import Encoder, Examples, collate
from unlearn.data.readers import read
from unlearn.data.rows import DataSet, Row
from unlearn.data.sampling import epoch_batches
from unlearn.ensemble import Ensemble, Member, build
from unlearn.identity import digest
from unlearn.models import llama, tokenizers
from unlearn.store import Store
from unlearn.trainer import Loop, MicroBatch, Optimisation, device

log = logging.getLogger(__name__)


@dataclass
class World:
    """Data, encoder and models of one pair; models are built or loaded when first asked for."""

    cfg: Config
    store: Store
    data: DataSet
    encoder: Encoder
    _models: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)

    def model(self, name: str) -> nn.Module:
        """A frozen model, on the run's device: target, retrained, small (as pair.offset_init says), or small_general,
        small_full, small_retain (as their name says). Copy it before training."""
        return self._load(name)[0]

    def fingerprint(self, name: str) -> str:
        return self._load(name)[1]

    def alone(self, name: str) -> Ensemble:
        """One of the models as an ensemble of itself."""
        return Ensemble((Member(name, self.model(name), self.fingerprint(name), 1.0, 0.0, False),))

    def _load(self, name: str) -> tuple[nn.Module, str]:
        if name not in self._models:
            known = {"target": "full", "retrained": "retain", "small": self.cfg.pair.offset_init}
            knowledge = known.get(name, name.removeprefix("small_"))
            size = self.cfg.pair.small if name.startswith("small") else self.cfg.pair.target
            model = llama.freeze(llama.load(_model(self, name, size, knowledge), device(self.cfg.trainer.device)))
            self._models[name] = (model, llama.fingerprint(model))
        return self._models[name]


_latest: dict[str, World] = {}  # the jobs of a grid mostly share one world: keep the last, with its loaded models


def the_world(cfg: Config) -> World:
    """Read the data set and make its tokenizer; models follow when they are asked for."""
    models = {k: v for k, v in asdict(cfg.pair).items() if k not in ("tuning", "lora")}  # how one learns is the run's
    key = digest([models, repr(cfg.data), str(Path(cfg.paths.store).resolve()), cfg.trainer.device])
    if key not in _latest:
        _latest.clear()
        _latest[key] = _world(cfg, Store(cfg.paths.store))
    return _latest[key]


def _world(cfg: Config, store: Store) -> World:
    data = read(cfg)
    recipe = {"config": asdict(cfg.pair.tokenizer), "data": data.fingerprint(), "template": asdict(cfg.data.template)}

    def build(folder: Path) -> None:
        tokenizers.train(cfg.pair.tokenizer, data, cfg.data.template).save_pretrained(folder)

    folder = store.get("tokenizer", recipe, build)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    longest = min(cfg.pair.target.max_length, cfg.pair.small.max_length)
    return World(cfg, store, data, Encoder(tokenizer, cfg.data.template, longest))


def frozen_ensemble(members: Sequence[MemberConfig], world: World, rule: Rule = SUM) -> Ensemble:
    """An ensemble of the world's own models, none of which learns."""
    models = {m.name: world.model(m.model) for m in members}
    widths = {name: llama.vocabulary(model) for name, model in models.items()}
    return build(members, models, {m.name: world.fingerprint(m.model) for m in members}, widths, rule)


def examples_of(encoder: Encoder, rows: Iterable[Row]) -> Examples:
    """Each row's question with its right answer."""
    return Examples(encoder.example(r.id, r.question, r.answer) for r in rows)


def _model(world: World, name: str, size: ModelConfig, knowledge: str) -> Path:
    """Folder of a model that knows the general facts and, by ``knowledge``, nothing else, all, or all but forget."""
    cfg, data = world.cfg.pair, world.data
    rows: Mapping[str, Sequence[Row]] = {
        "general": data.general(),
        "retain": (*data.splits["retain"], *data.general()),
        "full": (*data.splits["forget"], *data.splits["retain"], *data.general()),
    }
    # The small model's seed differs from the target's, or its first weights would be a slice of the same draw.
    seed = 2 * cfg.seed + (size is cfg.small)
    parent = None
    if size.pretrain.epochs and data.wordings:
        label = f"{'small' if size is cfg.small else 'large'} model, general facts in every wording"
        parent = _stage(world, size, size.pretrain, data.wordings, seed, None, label)
    stage = size.general if knowledge == "general" else size.finetune
    return _stage(world, size, stage, rows[knowledge], seed, parent, f"{name} model")


def _stage(
    world: World, size: ModelConfig, stage: StageConfig, rows: Sequence[Row], seed: int, parent: Path | None, label: str
) -> Path:
    pair, encoder = world.cfg.pair, world.encoder
    training = examples_of(encoder, rows)
    vocabulary = len(encoder.tokenizer)
    shape = {k: v for k, v in asdict(size).items() if k not in ("pretrain", "finetune", "general")}
    recipe: dict[str, Any] = {
        "shape": shape, "vocabulary": vocabulary, "stage": asdict(stage), "batch_size": pair.batch_size,
        "warmup": pair.warmup, "examples": training.fingerprint, "seed": seed, "parent": parent and parent.name,
    }  # fmt: skip

    def build(folder: Path) -> None:
        if parent is None:
            special = encoder.tokenizer.pad_token_id, encoder.tokenizer.eos_token_id
            model = llama.fresh(size, vocabulary, *special, seed)
        else:
            model = llama.load(parent)
        log.info(
            "training the %s: %s parameters, %d examples × %d epochs",
            label,
            f"{llama.parameters(model):,}",
            len(training),
            stage.epochs,
        )
        trained = _fit(model, training, stage, world, seed, label)
        trained.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)

    return world.store.get("model", recipe, build)


def _fit(model: nn.Module, training: Examples, stage: StageConfig, world: World, seed: int, label: str) -> nn.Module:
    """Plain supervised training on answer tokens."""
    pair, trainer = world.cfg.pair, world.cfg.trainer
    lengths = [len(e.prompt) + len(e.answer) for e in training]
    per_epoch = len(epoch_batches(lengths, pair.batch_size, seed, 0))
    settings = Optimisation(
        lr=stage.lr,
        steps=per_epoch * stage.epochs,
        warmup=pair.warmup,
        final_lr=0.1,
        decay="cosine",
        weight_decay=0.0,
        betas=(0.9, 0.98),
        clip=1.0,
    )
    loop = Loop(model.train(), settings, trainer.device)
    place = loop.accelerator.device

    @lru_cache(maxsize=1)
    def batches(epoch: int) -> list[list[int]]:
        return epoch_batches(lengths, pair.batch_size, seed, epoch)

    def micro_batches(step: int) -> list[MicroBatch]:
        epoch, at = divmod(step, per_epoch)
        return [partial(nll, [training[i] for i in batches(epoch)[at]])]

    def nll(chosen):
        batch = collate(chosen, world.encoder.tokenizer.pad_token_id).to(place)
        return -Answers(llama.answer_rows(loop.model, batch), batch.labels, batch.owner).logp.mean(), {}

    with tqdm(total=settings.steps, desc=label, disable=None if trainer.progress else True, leave=False) as bar:
        loop.run(micro_batches, lambda step, log: bar.update())
    return loop.model
