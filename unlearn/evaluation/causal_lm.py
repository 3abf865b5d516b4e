"""An ensemble at one α, in the shape in which other programs take a causal language model."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from unlearn.config.schema import ConfigError
from unlearn.ensemble.ensemble import Ensemble
from unlearn.models.llama import head


class EnsembleLM:
    """``config``, ``device`` and a forward pass to logits: what lm-eval's ``HFLM(pretrained=…)`` asks of a model.

    It generates nothing, and reads texts that are padded on the right alone.
    """

    def __init__(self, ensemble: Ensemble, alpha: float):
        if ensemble.encodes:
            raise ConfigError("lm-eval reads whole texts, and a member of this ensemble has an encoder (T5): it cannot")
        self.ensemble, self.alpha = ensemble.once, alpha
        self.members = self.ensemble.needed([alpha])
        for m in self.members:
            m.model.eval()
        self.config = self.members[0].model.config
        self.device = next(self.members[0].model.parameters()).device

    @property
    def max_length(self) -> int | None:
        """Tokens that every member takes; None where none of them has a limit."""
        configs = [m.model.config.get_text_config() for m in self.members]
        limits = [getattr(c, "max_position_embeddings", None) for c in configs]
        return min((n for n in limits if n is not None), default=None)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        """Ids [B, S] to ``.logits`` [B, S, V] in fp32; ``attention_mask`` [B, S] has 1 at tokens, 0 at padding."""
        rows = {}
        for m in self.members:
            place = next(m.model.parameters()).device
            mask = None if attention_mask is None else attention_mask.to(place)
            read = m.model.base_model(input_ids=input_ids.to(place), attention_mask=mask, use_cache=False)
            rows[m.name] = head(m.model, read.last_hidden_state).flatten(0, 1).to(self.device)
        logits = self.ensemble.logits(rows, self.alpha)
        return SimpleNamespace(logits=logits.view(*input_ids.shape, -1))

    __call__ = forward
