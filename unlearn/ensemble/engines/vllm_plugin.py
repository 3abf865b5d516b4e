"""What vLLM calls in each of its processes (entry point ``vllm.general_plugins``), so that it reads and serves exports.

Of this package only ``unlearn.ensemble.engines`` is imported, and of that only what needs torch, transformers and
vLLM: a wheel that was installed without its dependencies is enough. Names of vLLM are those of 0.32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from transformers import CONFIG_MAPPING, PretrainedConfig

from unlearn.ensemble.engines.configuration_unlearned import (
    SUM,
    UnlearnedConfig,
    is_gguf,
    is_quantised,
    located,
    target_of,
    weights,
    whole,
)  # fmt: skip

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ARCHITECTURE = "UnlearnedForCausalLM"
ELSEWHERE = "serve it with python -m unlearn.serve, or load it with transformers (from_pretrained)"
WHOLE = "vLLM is given unquantised models in folders alone"
TOP = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def register() -> None:
    """Tell vLLM of the exports' configuration, checks and model class. May be called again."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    _CONFIG_REGISTRY[UnlearnedConfig.model_type] = ExportConfig
    MODELS_CONFIG_MAP[ARCHITECTURE] = Checks
    ModelRegistry.register_model(ARCHITECTURE, f"unlearn.ensemble.engines.vllm_model:{ARCHITECTURE}")


class ExportConfig(PretrainedConfig):
    """Reads config.json as the target's configuration, by which vLLM plans; all of the file is ``unlearned`` in it."""

    model_type = UnlearnedConfig.model_type

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        config = UnlearnedConfig.from_dict(dict(config_dict))
        refuse(config)
        found = own(target_of(config.members)["config"])
        for key in TOP:
            if key in config_dict:
                setattr(found, key, config_dict[key])
        found.architectures, found.name_or_path = [ARCHITECTURE], kwargs.get("name_or_path", "")
        found.unlearned, found.alpha = config_dict, config.alpha
        found.target, found.base, found.places = None, None, None
        return (found, {}) if kwargs.get("return_unused_kwargs") else found


def own(config: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a member, of its own class."""
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    kind = config["model_type"]
    return (_CONFIG_REGISTRY if kind in _CONFIG_REGISTRY else CONFIG_MAPPING)[kind].from_dict(dict(config))


def asked(config: PretrainedConfig) -> UnlearnedConfig:
    """What the export says, and what the command line does (``--hf-overrides``): where target and base lie, and α."""
    found = UnlearnedConfig.from_dict(dict(config.unlearned))
    found.target, found.base = config.target, config.base
    found.alpha = found.alpha if config.alpha is None else config.alpha
    return found


class Checks:
    """Asked by vLLM before anything is loaded, in the process that was started: its user reads the ``ValueError``."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Nothing yet: not everything that was asked for is known."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        model = vllm_config.model_config
        config = asked(model.hf_config)
        if model.quantization is not None:
            raise ValueError(f"quantization={model.quantization!r}: {WHOLE}; {ELSEWHERE}")
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

            refuse_heads(config, CPUAttentionBackend.get_supported_head_sizes())
        folder = model.model
        if not Path(folder).is_dir():
            folder = snapshot_download(folder, revision=model.revision)
        places = {name: (str(p.folder), p.adapter and str(p.adapter)) for name, p in located(folder, config).items()}
        model.hf_config.places = places  # so that no other process of vLLM reads all files again


def refuse(config: UnlearnedConfig) -> None:
    """Raise ``ValueError`` for exports that vLLM cannot be given."""
    if config.rule != SUM:
        raise ValueError(f"rule={config.rule!r}: vLLM is given weighted sums alone; {ELSEWHERE}")
    for m in config.members:
        if is_gguf(m):
            raise ValueError(f"{m['name']}: is a GGUF file; {WHOLE}; {ELSEWHERE}")
        if is_quantised(m):
            raise ValueError(f"{m['name']}: is quantised; {WHOLE}; {ELSEWHERE}")


def refuse_heads(config: UnlearnedConfig, sizes: Collection[int]) -> None:
    """Raise ``ValueError`` for heads that vLLM has no attention for; on a CPU it finds out at the first request."""
    counting = weights(config)
    for m in (m for m in config.members if m["name"] in counting):
        of = whole(m)["config"]
        size = of.get("head_dim") or of.get("hidden_size", 0) // of.get("num_attention_heads", 1)
        if size and size not in sizes:
            rule = f"must be one of {', '.join(map(str, sizes))} for vLLM on a CPU"
            raise ValueError(f"{m['name']}: head_dim={size}: {rule}; {ELSEWHERE}")
