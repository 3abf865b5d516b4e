"""In which ways an export can be used, and why not in the others."""

from collections.abc import Mapping
from typing import Any

PACKAGE, ALONE, VLLM, SERVE = WAYS = ("transformers with this package", "transformers alone", "vLLM", "unlearn.serve")
HINDRANCES = {  # by what an export has: its words, and the ways that it closes
    "rule": ("its rule is not a sum", (ALONE, VLLM)),
    "quantised": ("its target is quantised", (ALONE, VLLM)),
    "gguf": ("its target is a GGUF file", (VLLM,)),
}


def ways(config: Mapping[str, Any]) -> dict[str, str | None]:
    """Of the content of an export's config.json: by way None, or why it is closed."""
    from unlearn.ensemble.engines.configuration_unlearned import SUM, is_gguf, is_quantised  # and transformers

    members = config["members"]
    has = {"rule": config["rule"] != SUM}
    has |= {"quantised": any(map(is_quantised, members)), "gguf": any(map(is_gguf, members))}
    closed = {way: [words for key, (words, of) in HINDRANCES.items() if has[key] and way in of] for way in WAYS}
    return {way: " and ".join(why) or None for way, why in closed.items()}


def told(found: Mapping[str, str | None]) -> str:
    return " · ".join(f"{way}: {'yes' if why is None else f'no, {why}'}" for way, why in found.items())
