"""Everything a run needs before it can unlearn: data set, tokenizer, target, retrained reference, small pair.

Models are pretrained ones as they are, or trained on the data set, stage by stage, from scratch or from a pretrained
one; a stage is found in the store by its recipe (size, training data, schedule, seed and the weights it starts from),
so target and retrained reference share their pretraining and every job shares everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from unlearn import sources
from unlearn.answers import Answers
from unlearn.blackbox.remote import Place, RemoteModel, fingerprint
from unlearn.combination import SUM, Rule
from unlearn.config import Config, ConfigError, MemberConfig
from unlearn.config_pair import ModelConfig, PairConfig, StageConfig
from unlearn.data.encoding import Encoder, Example, Examples, collate
from unlearn.data.readers import read
from unlearn.data.rows import DataSet, Row
from unlearn.data.sampling import epoch_batches
from unlearn.ensemble import Ensemble, Member, build
from unlearn.identity import digest, template
from unlearn.models import hub, llama, tokenizers, weights
from unlearn.store import Store
from unlearn.trainer import Diverged, Loop, MicroBatch, Optimisation, device

log = logging.getLogger(__name__)
SHAPE = ("hidden_size", "layers", "heads", "intermediate_size", "initializer_range", "max_length")  # from scratch


@dataclass
class World:
    """Data, encoder and models of one pair; models are built or loaded when first asked for.

    A model is asked for as target, retrained, small (as pair.offset_init says), or small_general, small_full,
    small_retain (as their name says).
    """

    cfg: Config
    store: Store
    data: DataSet
    encoder: Encoder
    width: int | None = None  # logits that every model is read for; None: all are from scratch, and have as many
    _models: dict[str, nn.Module] = field(default_factory=dict)
    _prints: dict[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether a model can be had. A ready-made target has a retrained twin only where the config names one."""
        return sources.lacking(self.cfg.pair, sources.role(self.cfg.pair, name)) is None

    def model(self, name: str) -> nn.Module:
        """A frozen model, on its device. Copy it before training. ``ConfigError`` for one that cannot be had."""
        role = sources.role(self.cfg.pair, name)
        if role in self._models:
            return self._models[role]
        model = self._load(role)
        if role != "retrained":  # it is as large as the target, and asked for once: its evaluation is stored
            self._models[role] = model
        return model

    def fingerprint(self, name: str) -> str:
        """What identifies a model in the store. Of one with a pretrained origin it is known without loading it."""
        role = sources.role(self.cfg.pair, name)
        if role not in self._prints:
            if sources.is_remote(self.cfg.pair, role):
                self._prints[role] = self._remote_print()
            elif sources.is_pretrained(self.cfg.pair, role):
                held, memo = None if role.startswith("small") else self.cfg.pair.target, self.store.root / "hashes"
                self._prints[role] = hub.fingerprint(_folder(self, role), memo, self.width, held)
            else:
                self._prints[role] = llama.fingerprint(self.model(role))
        return self._prints[role]

    def begin(self) -> None:
        """Count what is asked of a target behind a server from here: the jobs of a grid share their world."""
        target = self._models.get("target")
        if isinstance(target, RemoteModel):
            target.begin()

    def asked(self) -> dict[str, Any]:
        """What a manifest says of such a target; nothing of another."""
        target = self._models.get("target")
        return {"black_box": target.facts()} if isinstance(target, RemoteModel) else {}

    def folder(self, name: str) -> Path:
        """Where the weights of a model lie: in the store, in the hub's cache, or in a folder of the user."""
        return _folder(self, sources.role(self.cfg.pair, name))

    def alone(self, name: str) -> Ensemble:
        """One of the models as an ensemble of itself."""
        return Ensemble((Member(name, self.model(name), self.fingerprint(name), 1.0, 0.0, False),))

    def _load(self, role: str) -> nn.Module:
        if sources.is_remote(self.cfg.pair, role):
            return llama.freeze(self._remote())
        folder, place = _folder(self, role), device(self.cfg.trainer.device)
        model = llama.load(folder, place) if role.startswith("small") else hub.load(folder, self.cfg.pair.target, place)
        if sources.is_pretrained(self.cfg.pair, role):
            weights.check(hub.check_head(model, f"pair.{role} ({folder})"), f"pair.{role} ({folder})")
        return llama.freeze(model if self.width is None else llama.narrow(model, self.width))

    def _remote(self) -> RemoteModel:
        http, trainer = self.cfg.pair.target.http, self.cfg.trainer
        like = None
        if http.tail == "anchor":
            like = Member("anchor", self.model("small"), self.fingerprint("small"), 1.0, 0.0, False)
        tokenizer, place = self.encoder.tokenizer, device(trainer.device)
        return RemoteModel(http, Place(self.store.root, tokenizer, self._logits(), place, trainer.progress), like)

    def _remote_print(self) -> str:
        http = self.cfg.pair.target.http
        return fingerprint(http, self._logits(), self.fingerprint("small") if http.tail == "anchor" else None)

    def _logits(self) -> int:
        return tokenizers.size(self.encoder.tokenizer) if self.width is None else self.width


_latest: dict[str, World] = {}  # the jobs of a grid mostly share one world: keep the last, with its loaded models


def the_world(cfg: Config) -> World:
    """Read the data set and make its tokenizer; models follow when they are asked for."""
    of_learner = ("tuning", "lora", "layers")  # how one learns is the run's
    models = {k: v for k, v in asdict(cfg.pair).items() if k not in of_learner}
    key = digest([models, repr(cfg.data), str(Path(cfg.paths.store).resolve()), cfg.trainer.device])
    if key not in _latest:
        _latest.clear()
        _latest[key] = _world(cfg, Store(cfg.paths.store))
    return _latest[key]


def _world(cfg: Config, store: Store) -> World:
    data = read(cfg)
    tokenizer = _tokenizer(cfg, store, data)
    longest = min(cfg.pair.target.max_length, cfg.pair.small.max_length)
    encoder = Encoder(tokenizer, cfg.data.template, longest)
    return World(cfg, store, data, encoder, _width(cfg.pair, tokenizer, longest))


def _tokenizer(cfg: Config, store: Store, data: DataSet) -> PreTrainedTokenizerBase:
    settings = cfg.pair.tokenizer
    if settings.kind == "pretrained":
        key = "target" if settings.source is None else "tokenizer"
        return hub.tokenizer(f"pair.{key}.source", sources.tokenizer_source(cfg.pair))
    how = {"kind": settings.kind, "vocab_size": settings.vocab_size}
    recipe = {"config": how, "data": data.fingerprint(), "template": template(cfg.data.template)}

    def build(folder: Path) -> None:
        tokenizers.train(settings, data, cfg.data.template).save_pretrained(folder)

    return tokenizers.load(store.get("tokenizer", recipe, build))


def _width(pair: PairConfig, tokenizer: PreTrainedTokenizerBase, longest: int) -> int | None:
    """Logits that every model of the pair is read for; None where all have as many as the tokenizer has tokens."""
    if not any(sources.is_pretrained(pair, role) for role in sources.ROLES):
        return None
    widths = {}
    for name in ("target", "small"):
        source = getattr(pair, name)
        if source.source is None and sources.is_remote(pair, name):
            continue  # what a server gives beyond the others' width is left
        if source.source is None:
            widths[f"{name} (from scratch)"] = tokenizers.size(tokenizer)
        else:
            folder = hub.check(f"pair.{name}", source, tokenizer, longest)
            widths[f"{name} {source.source!r}"] = hub.vocabulary(folder)
    return hub.common_width(widths, tokenizer)


def frozen_ensemble(members: Sequence[MemberConfig], world: World, rule: Rule = SUM) -> Ensemble:
    """An ensemble of the world's own models, none of which learns."""
    models = {m.name: world.model(m.model) for m in members}
    widths = {name: llama.vocabulary(model) for name, model in models.items()}
    return build(members, models, {m.name: world.fingerprint(m.model) for m in members}, widths, rule)


def examples_of(encoder: Encoder, rows: Iterable[Row]) -> Examples:
    """Each row's question with its right answer."""
    return Examples(encoder.example(r.id, r.question, r.answer) for r in rows)


def texts_of(encoder: Encoder, rows: Iterable[Row]) -> Examples:
    """Each row's question with its right answer as one text: of every token but the first its probability is asked."""
    pairs = (encoder.example(f"{r.id}/text", r.question, r.answer) for r in rows)
    return Examples(Example(e.id, e.prompt[:1], (*e.prompt[1:], *e.answer)) for e in pairs)


@dataclass(frozen=True)
class _Start:
    """Weights that a stage begins with."""

    folder: Path
    key: str  # in the recipe of the stage


def _folder(world: World, role: str) -> Path:
    """Folder of a model of the pair: ready-made, or trained stage by stage."""
    pair = world.cfg.pair
    problem = sources.lacking(pair, role)
    if sources.is_remote(pair, role):
        problem = "pair.target.kind='http': the weights of the target are on a server, and not to be had"
    if problem is not None:
        raise ConfigError(problem)
    own = sources.own_source(pair, role)
    if own is None:
        return _trained(world, role)
    check_own(world, role)
    return hub.locate(f"pair.{role}.source", own)


def check_own(world: World, role: str) -> None:
    """Refuse a ready-made model that stands beside target and small and does not share their vocabulary."""
    own, encoder = sources.own_source(world.cfg.pair, role), world.encoder
    if own is None:
        return
    width = hub.vocabulary(hub.check(f"pair.{role}", own, encoder.tokenizer, encoder.max_length))
    if width < world.width:
        raise ConfigError(
            f"pair.{role}.source={own.source!r}: its head has {width:,} logits, and target and small are read for "
            f"{world.width:,}; a model that stands beside them needs as many"
        )


def _trained(world: World, role: str) -> Path:
    """A model that knows the general facts and, by its role, nothing else, all, or all but the forget set."""
    pair, data, size = world.cfg.pair, world.data, sources.size_of(world.cfg.pair, role)
    known: Mapping[str, Sequence[Row]] = {
        "small_general": data.general(),
        "small_retain": (*data.splits["retain"], *data.general()),
        "small_full": (*data.splits["forget"], *data.splits["retain"], *data.general()),
    }
    rows = known[{"target": "small_full", "retrained": "small_retain"}.get(role, role)]
    # The small model's seed differs from the target's, or its first weights would be a slice of the same draw.
    seed = 2 * pair.seed + (size is pair.small)
    start, stage = None, sources.last_stage(pair, role)
    if size.source is not None:
        folder = hub.locate(f"pair.{'small' if size is pair.small else 'target'}.source", size)
        start = _Start(folder, sources.content(folder, world.store.root / "hashes"))
    if size.pretrain.epochs and data.wordings:
        label = f"{'small' if size is pair.small else 'large'} model, general facts in every wording"
        start = _stage(world, size, size.pretrain, data.wordings, seed, start, label)
    if start is not None and not stage.epochs:
        return start.folder
    return _stage(world, size, stage, rows, seed, start, f"{role} model").folder


def _stage(
    world: World,
    size: ModelConfig,
    stage: StageConfig,
    rows: Sequence[Row],
    seed: int,
    start: _Start | None,
    label: str,
) -> _Start:
    pair, encoder = world.cfg.pair, world.encoder
    if stage.epochs and not rows:
        raise ConfigError(
            f"data set {world.data.name!r} has nothing to train the {label} on: it has no general facts (real authors, "
            "world facts); take pair.offset_init=retain or full"
        )
    training = examples_of(encoder, rows)
    vocabulary = tokenizers.size(encoder.tokenizer)
    shape = {k: getattr(size, k) for k in SHAPE}
    recipe: dict[str, Any] = {
        "stage": asdict(stage), "batch_size": pair.batch_size, "warmup": pair.warmup,
        "examples": training.fingerprint, "seed": seed, "parent": start and start.key,
    }  # fmt: skip
    if size.source is None:
        recipe |= {"shape": shape, "vocabulary": vocabulary}

    def build(folder: Path) -> None:
        if start is None:
            special = encoder.tokenizer.pad_token_id, encoder.tokenizer.eos_token_id
            model = llama.fresh(size, vocabulary, *special, seed)
        else:
            model = llama.load(start.folder)
        log.info(
            "training the %s: %s parameters, %d examples × %d epochs",
            label,
            f"{llama.parameters(model):,}",
            len(training),
            stage.epochs,
        )
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)  # pretrained models may have dropout; the run's seed must not reach their training
            trained = _fit(model, training, stage, world, seed, label)
        trained.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)

    folder = world.store.get("model", recipe, build)
    return _Start(folder, folder.name)


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
        try:
            loop.run(micro_batches, lambda step, log: bar.update())
        except Diverged as error:
            epoch, at = divmod(loop.step, per_epoch)
            raise error.reading({label: [training[i].id for i in batches(epoch)[at]]}) from None
    return loop.model
