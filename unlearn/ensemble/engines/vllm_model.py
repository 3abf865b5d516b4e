"""The unlearned model as vLLM runs it: the members' own vLLM classes side by side, and the sum of their logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix

from unlearn.ensemble.engines.configuration_unlearned import factors, terms, whole
from unlearn.ensemble.engines.vllm_plugin import asked, own


class UnlearnedForCausalLM(nn.Module):
    """Σ weight · logits of the members that count at the export's α. What several members are is run once."""

    # vLLM reads weights of the folder that it serves whatever a model says: the smallest there, which are dropped
    allow_patterns_overrides = ["*/adapter_model.safetensors", "*/*.safetensors"]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        hf_config = vllm_config.model_config.hf_config
        config = asked(hf_config)
        self.weights, self.width = dict(terms(config)), hf_config.vocab_size
        configs = {m["name"]: own(whole(m)["config"]) for m in config.members if m["name"] in self.weights}
        self.sizes = [configs[name].hidden_size for name in self.weights]
        self.members, self.secondary_weights, self.adapters = nn.ModuleDict(), [], {}
        for name in self.weights:
            folder, adapter = hf_config.places[name]
            # vLLM keeps what it compiled by the configuration, with the names of layers (so of KV caches) in it: of two
            # members of one shape each needs its own
            configs[name].unlearned_member = name
            with set_model_tag(f"unlearned_{name}"):
                self.members[name] = init_vllm_registered_model(
                    vllm_config, hf_config=configs[name], prefix=maybe_prefix(prefix, f"members.{name}")
                )
            self.secondary_weights.append(DefaultModelLoader.Source(folder, None, prefix=f"members.{name}."))
            if adapter is not None:
                self.adapters[name] = Path(adapter)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Not used: each member embeds by itself. vLLM asks for it to know a model that generates."""
        return next(iter(self.members.values())).embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
        **more: object,
    ) -> Tensor:
        """Ids [N] to the last hidden states of all members, side by side [N, Σ D]."""
        return torch.cat([m(input_ids, positions) for m in self.members.values()], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits of the sum, [N, V] in fp32; None where vLLM gathers them in another process."""
        states = hidden_states.split(self.sizes, dim=-1)
        total = None
        # from the last: where offset and anchor agree, they are zero before the target is added
        for (name, member), own_states in reversed(list(zip(self.members.items(), states, strict=True))):
            logits = member.compute_logits(own_states.contiguous())
            if logits is not None:
                term = self.weights[name] * logits[..., : self.width].float()
                total = term if total is None else total + term
        return total

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(self._merged(weights))

    def _merged(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The members' weights; updates of an adapter are added in fp32, ΔW = (alpha / r) · B · A [out, in]."""
        found = {f"members.{m}.{f[0]}.weight": f[1:] for m, place in self.adapters.items() for f in factors(place)}
        for name, weight in weights:
            if name in found:
                a, b, scale = found.pop(name)
                weight = weight.float() + scale * (b.float() @ a.float()).to(weight.device)
            if name.startswith("members."):
                yield name, weight
        if found:
            raise ValueError(f"{len(found)} updates are of no weight of their base, e.g. {next(iter(found))}")
