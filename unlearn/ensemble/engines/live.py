"""An ensemble of models in memory as one model of transformers."""

from __future__ import annotations

from unlearn.config.schema import ConfigError
from unlearn.ensemble import combination
from unlearn.ensemble.engines.modeling_unlearned import SUM, UnlearnedConfig, UnlearnedForCausalLM
from unlearn.ensemble.ensemble import Ensemble
from unlearn.models.llama import vocabulary


def causal_lm(ensemble: Ensemble, alpha: float) -> UnlearnedForCausalLM:
    """The ensemble at one α; its models are put into evaluation mode. ``ConfigError`` for what reads no whole texts."""
    if ensemble.encodes:
        raise ConfigError("whole texts are read here, and a member of this ensemble has an encoder (T5): it cannot")
    ensemble = ensemble.once
    used = ensemble.needed([alpha])
    configs = [m.model.config.get_text_config() for m in used]
    limits = [n for c in configs if (n := getattr(c, "max_position_embeddings", None)) is not None]
    config = UnlearnedConfig(
        [{"name": m.name, "constant": m.constant, "slope": m.slope, "watch": m.watch} for m in used],
        alpha,
        SUM if ensemble.rule is combination.SUM else "given",
        vocab_size=vocabulary(used[0].model),
        max_position_embeddings=min(limits, default=None),
    )
    rule = None if config.rule == SUM else ensemble.rule
    return UnlearnedForCausalLM(config, {m.name: m.model for m in used}, rule)
