"""Dialects of the same metrics. Published numbers differ by dialect more than by method, so every entry names its own.

``default`` is OpenUnlearning's definitions without what is an accident in them. ``ou`` reproduces OpenUnlearning (arXiv
2506.12618) to the digit, accidents included. ``tofu`` is what TOFU's own scripts (arXiv 2401.06121) compute.
"""

from dataclasses import dataclass

from unlearn.evaluation.metrics.texts import ANY_SCRIPT, ASCII, Rouge


@dataclass(frozen=True)
class Semantics:
    name: str
    epsilon: float = 0.0  # added to denominators; decides a truth ratio once the right answer's mean NLL passes 23
    suffix_at_least_one: bool = False  # extraction strength is never below 1 / L
    hide_pad_tokens: bool = False  # tokens of a text that are the padding token are masked, in prompts too
    labels_by_length: bool = False  # labels are all tokens after as many as the prompt has alone, whatever they are
    norm_per_parameter: bool = False  # gradient norms are means over parameters, without EOS
    stemmer_f1: bool = False  # ROUGE-L F1 of MUSE's metrics with Porter's stemmer
    rows: int | None = None  # only the first rows of each split are evaluated
    total_tokens: int | None = None  # prompt and generation together
    rouge: Rouge = ANY_SCRIPT


SEMANTICS = {
    "default": Semantics("default"),
    "ou": Semantics(
        "ou", 1e-10, suffix_at_least_one=True, hide_pad_tokens=True, labels_by_length=True, norm_per_parameter=True,
        stemmer_f1=True, rouge=ASCII,
    ),
    "tofu": Semantics("tofu", rows=300, total_tokens=200, rouge=ASCII),
}  # fmt: skip
