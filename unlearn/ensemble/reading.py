"""Read the answer rows of examples batch by batch, for scoring and for the check of drafts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from unlearn.data.encoding import Batch, Examples, by_length, collate, most_rows
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.frozen import FrozenRows, LiveRows
from unlearn.models.llama import answer_rows, device_of, vocabulary
from unlearn.models.prompts import by_prompt


@torch.no_grad()
def read(
    ensemble: Ensemble,
    examples: Examples,
    alphas: Sequence[float],
    stored: Mapping[str, FrozenRows | LiveRows],
    pad_id: int,
    batch_size: int,
    mask_pad: bool = False,
) -> Iterator[tuple[list[int], Batch, dict[str, Tensor]]]:
    """Batch by batch: which examples, the batch, and the answer rows [N, V] of every member that counts.

    Rows lie as ``collate`` lays the examples. Members with ``stored`` rows are not run.
    """
    needed = ensemble.needed(alphas)
    live = [m for m in needed if m.name not in stored]
    device = device_of((live or needed)[0].model)  # a model that is not run may have been put aside
    for m in live:
        m.model.eval()
    split = by_length if mask_pad else by_prompt  # what is hidden of a text is hidden of a text that is read whole
    for indices in split(examples, batch_size, most_rows(vocabulary(needed[0].model), device)):
        chosen = [examples[i] for i in indices]
        batch = collate(chosen, pad_id, mask_pad).to(device)
        rows = {m.name: stored[m.name].take(indices, device) for m in needed if m.name in stored}
        for m in live:
            found = answer_rows(m.model, batch) if mask_pad else m.kind.rows(chosen, pad_id)
            rows[m.name] = found.to(device)
        yield indices, batch, rows
