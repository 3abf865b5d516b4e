"""How any ensemble behaves on a split: what groups measure on changed models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unlearn.data.encoding import Batch, Examples
from unlearn.decoding.generation import greedy
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.metrics.rouge import recall
from unlearn.evaluation.scoring import score
from unlearn.evaluation.suite import Split, Suite
from unlearn.models.llama import answer_rows
from unlearn.models.tuning import merged


def answers(suite: Suite, ensemble: Ensemble, alpha: float, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Greedy answers to prompts of token ids."""
    tokenizer, cfg = suite.encoder.tokenizer, suite.cfg
    ends = tokenizer.pad_token_id, tokenizer.eos_token_id
    found = greedy(ensemble, prompts, alpha, *ends, cfg.max_new_tokens, cfg.batch_size)
    return [suite.encoder.decode(a) for a in found]


def recalls(suite: Suite, ensemble: Ensemble, alpha: float, split: Split) -> np.ndarray:
    """ROUGE-L recall of the greedy answer to each question, [rows]."""
    texts = answers(suite, ensemble, alpha, split.prompts)
    return np.array([recall(text, row.answer) for text, row in zip(texts, split.rows, strict=True)])


def probs(suite: Suite, ensemble: Ensemble, alpha: float, split: Split) -> np.ndarray:
    """Probability of each right answer, [rows]."""
    right = Examples(split.examples[i] for i in split.right)
    pad = suite.encoder.tokenizer.pad_token_id
    return score(ensemble, right, [alpha], {}, pad, suite.cfg.batch_size)[alpha].prob


def trainable(ensemble: Ensemble, alpha: float) -> Ensemble | None:
    """The ensemble with a copy of its trained (or only) member that may learn; None where none does at this α."""
    if ensemble.trained is None and len(ensemble.members) > 1:
        return None
    chosen = ensemble.trained or ensemble.members[0]
    if chosen not in ensemble.needed([alpha]):
        return None
    model = copy.deepcopy(merged(chosen.model)).requires_grad_(True)
    members = (replace(m, model=model, trained=True) if m is chosen else m for m in ensemble.members)
    return replace(ensemble, members=tuple(members))


def live_rows(ensemble: Ensemble, alpha: float, batch: Batch) -> dict[str, Tensor]:
    """Answer rows of every member that counts at this α; gradients reach the trained one only."""
    rows = {}
    for member in ensemble.needed([alpha]):
        with torch.set_grad_enabled(member.trained):
            rows[member.name] = answer_rows(member.model, batch)
    return rows
