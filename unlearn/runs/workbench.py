"""Everything a run needs before it can unlearn: data set, tokenizer, target, retrained reference, small pair.

Models are pretrained ones as they are, trained on the data set (``building.py``), or behind a server.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn.blackbox.remote import Place, RemoteModel, fingerprint
from unlearn.config.pair import PairConfig
from unlearn.config.schema import Config, ConfigError, MemberConfig
from unlearn.data import spans
from unlearn.data.encoding import Encoder
from unlearn.data.readers import read
from unlearn.data.rows import DataSet
from unlearn.ensemble.combination import SUM, Rule
from unlearn.ensemble.ensemble import Ensemble, Member, build
from unlearn.ensemble.kinds import kind_of
from unlearn.learning.loop import device
from unlearn.models import hub, llama, tokenizers
from unlearn.runs.building import trained
from unlearn.store import sources
from unlearn.store.entries import Busy, Store
from unlearn.store.identity import digest, template
from unlearn.store.progress import progress

log = logging.getLogger(__name__)


@dataclass
class Workbench:
    """Data, encoder and models of one pair; models are built or loaded when first asked for: target, retrained, small
    (as pair.offset_init says), small_general, small_full, small_retain."""

    cfg: Config
    store: Store
    data: DataSet
    encoder: Encoder
    width: int  # logits that every model is read for
    _models: dict[str, nn.Module] = field(default_factory=dict)
    _prints: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if own := self.encoder.own_system:
            _say_system(own, len(self.encoder.tokenizer.tokenize(own)))

    def has(self, name: str) -> bool:
        """Whether the pair provides a model. A ready-made target has a retrained twin only where one is named."""
        return sources.lacking(self.cfg.pair, sources.role(self.cfg.pair, name)) is None

    def model(self, name: str) -> nn.Module:
        """A frozen model, on its device. Copy it before training. ``ConfigError`` for one that the pair has not."""
        role = sources.role(self.cfg.pair, name)
        if role in self._models:
            return self._models[role]
        model, pair = None, self.cfg.pair
        if pair.target.device_map is None and sources.is_pretrained(pair, role):
            # the same model under another role is in memory once; what is trained here has its fingerprint only when
            # it is loaded
            others = (r for r in self._models if sources.is_pretrained(pair, r))
            model = next((self._models[r] for r in others if self.fingerprint(r) == self.fingerprint(role)), None)
        if model is None:
            with progress(None, f"loading the {role.replace('_', ' ')} model"):
                model = llama.freeze(self._load(role))
        if role != "retrained":  # it is as large as the target, and asked for once: its evaluation is stored
            self._models[role] = model
        return model

    def fingerprint(self, name: str) -> str:
        """What identifies a model in the store. Of one with a pretrained origin it is known without loading it."""
        pair, role = self.cfg.pair, sources.role(self.cfg.pair, name)
        if role in self._prints:
            return self._prints[role]
        if sources.is_remote(pair, role):
            found = fingerprint(pair.target.http, self.width)
        elif sources.is_pretrained(pair, role):
            held = None if role.startswith("small") else pair.target
            found = hub.fingerprint(self.folder(role), self.store.root / "hashes", self.width, held)
        else:
            found = llama.fingerprint(self.model(role))
        self._prints[role] = found
        return found

    def train(self, names: Iterable[str]) -> None:
        """Make the models that are trained here and not yet in the store. One that another process is making is left to
        it, so that two that start together make one each; it is waited for when it is asked for."""
        pair = self.cfg.pair
        roles = dict.fromkeys(sources.role(pair, name) for name in names if self.has(name))
        self.store.waits = False
        try:
            for role in roles:
                if not sources.is_remote(pair, role) and sources.ready_made(pair, role) is None:
                    with suppress(Busy):
                        trained(self, role)
        finally:
            self.store.waits = True

    @property
    def pad_id(self) -> int:
        return self.encoder.tokenizer.pad_token_id

    def begin(self) -> None:
        """Count what is asked of models from here: the jobs of a grid share their world."""
        for model in self._models.values():
            kind_of(model).begin()

    def asked(self) -> dict[str, Any]:
        """What a manifest says of the models beside what identifies them: of a black box, what it was asked."""
        found = [facts for model in self._models.values() if (facts := kind_of(model).facts())]
        return {"black_box": found[0]} if found else {}

    def folder(self, name: str) -> Path:
        """Where the weights of a model lie: in the store, in the hub's cache, or in a folder of the user."""
        pair, role = self.cfg.pair, sources.role(self.cfg.pair, name)
        problem = sources.lacking(pair, role)
        if sources.is_remote(pair, role):
            problem = "pair.target.kind='http': the target's weights are on a server and not available"
        if problem is not None:
            raise ConfigError(problem)
        own = sources.own_source(pair, role)
        if own is None:
            return trained(self, role)
        check_own(self, role)
        return hub.locate(f"pair.{role}.source", own)

    def adopt(self, other: "Workbench") -> None:
        """Share the loaded models of another world that are this one's, too, instead of loading them again."""
        for role, model in other._models.items():
            if self.has(role) and self.fingerprint(role) == other.fingerprint(role):
                self._models[role] = model

    def encodes(self, name: str) -> bool:
        """Whether a model has an encoder; told without its weights."""
        role = sources.role(self.cfg.pair, name)
        size = sources.size_of(self.cfg.pair, role)
        source = sources.own_source(self.cfg.pair, role) or size
        if source.source is None:
            return size.architecture == "t5"
        return hub.has_encoder(hub.locate(f"pair.{role}.source", source, weights=False))

    def alone(self, name: str) -> Ensemble:
        """One of the models as an ensemble of itself."""
        return Ensemble((Member(name, self.model(name), self.fingerprint(name)),))

    def _load(self, role: str) -> nn.Module:
        pair, trainer = self.cfg.pair, self.cfg.trainer
        if sources.is_remote(pair, role):
            place = device(trainer.device)
            where = Place(self.store.root, self.encoder.tokenizer, self.width, place)
            return RemoteModel(pair.target.http, where)
        folder, place = self.folder(role), device(trainer.device)
        model = llama.load(folder, place) if role.startswith("small") else hub.load(folder, pair.target, place)
        if sources.is_pretrained(pair, role):
            hub.check_head(model, f"pair.{role} ({folder})")
        return llama.narrow(model, self.width)


@cache
def _say_system(own: str, tokens: int) -> None:
    rule = "data.template.system='' leaves it empty"
    log.info(
        "template=chat: the model's template writes a system message of %d tokens itself: %r; %s", tokens, own, rule
    )


_latest: dict[str, Workbench] = {}  # the jobs of a grid mostly share one world: keep the last, with its loaded models


def workbench(cfg: Config) -> Workbench:
    """Read the data set and make its tokenizer; models follow when they are asked for."""
    own = ("tuning", "lora", "layers")  # how one learns is the run's
    models = {k: v for k, v in asdict(cfg.pair).items() if k not in own}
    key = digest([models, repr(cfg.data), str(Path(cfg.paths.store).resolve()), cfg.trainer.device])
    if key not in _latest:
        _latest.clear()
        store, data = Store(cfg.paths.store), read(cfg)
        tokenizer = _tokenizer(cfg, store, data)
        longest = min(cfg.pair.target.max_length, cfg.pair.small.max_length)
        encoder = Encoder(tokenizer, cfg.data.template, longest)
        _latest[key] = Workbench(cfg, store, data, encoder, _width(cfg.pair, tokenizer, longest))
    return _latest[key]


def _tokenizer(cfg: Config, store: Store, data: DataSet) -> PreTrainedTokenizerBase:
    settings = cfg.pair.tokenizer
    if settings.kind == "pretrained":
        key = "target" if settings.source is None else "tokenizer"
        return hub.tokenizer(f"pair.{key}.source", sources.tokenizer_source(cfg.pair))
    how, whole = {"kind": settings.kind, "vocab_size": settings.vocab_size}, data.whole()
    recipe = {"config": how, "data": whole.fingerprint(), "template": template(cfg.data.template)}
    masks = spans.PREFIX if "t5" in (cfg.pair.target.architecture, cfg.pair.small.architecture) else None
    recipe |= {} if masks is None else {"masks": masks}

    def build(folder: Path) -> None:
        tokenizers.train(settings, whole, cfg.data.template, masks).save_pretrained(folder)

    return tokenizers.load(store.get("tokenizer", recipe, build))


def _width(pair: PairConfig, tokenizer: PreTrainedTokenizerBase, longest: int) -> int:
    """Logits that every model of the pair is read for."""
    widths = {}
    for name in ("target", "small"):
        source = getattr(pair, name)
        if source.source is not None:
            widths[f"{name} {source.source!r}"] = hub.check(f"pair.{name}", source, tokenizer, longest)
        elif not sources.is_remote(pair, name):  # what a server gives beyond the others' width is left
            widths[f"{name} (from scratch)"] = tokenizers.size(tokenizer)
    return hub.common_width(widths, tokenizer)


def frozen_ensemble(members: Sequence[MemberConfig], bench: Workbench, rule: Rule = SUM) -> Ensemble:
    """An ensemble of the world's own models, none of which learns."""
    models = {m.name: bench.model(m.model) for m in members}
    widths = {name: llama.vocabulary(model) for name, model in models.items()}
    return build(members, models, {m.name: bench.fingerprint(m.model) for m in members}, widths, rule)


def check_own(bench: Workbench, role: str) -> None:
    """Refuse a ready-made model that stands beside target and small and does not share their vocabulary."""
    own, encoder = sources.own_source(bench.cfg.pair, role), bench.encoder
    if own is None:
        return
    width = hub.check(f"pair.{role}", own, encoder.tokenizer, encoder.max_length)
    if width < bench.width:
        rule = f"target and small are read for {bench.width:,}; a model that stands beside them needs as many"
        raise ConfigError(f"pair.{role}.source={own.source!r}: its head has {width:,} logits, and {rule}")
