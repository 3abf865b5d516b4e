"""From texts to token ids and to batches that know where their answer rows are.

B examples, S tokens, N answer tokens of the batch, V vocabulary. Labels are aligned here, once: the row at position t
predicts the token at t + 1, so the rows of an answer run from the last prompt token to the last but one token, and
the closing EOS is a label. Only these rows are ever scored, so padding and prompts cannot reach a loss or a metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unlearn.config import TemplateConfig
from unlearn.data.rows import DataError
from unlearn.identity import digest


@dataclass(frozen=True)
class Example:
    """One prompt and one answer as token ids; the answer ends with EOS."""

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Examples(list[Example]):
    """A fixed list of examples. Its fingerprint covers the token ids: template and tokenizer are in it."""

    @cached_property
    def fingerprint(self) -> str:
        return digest([(e.prompt, e.answer) for e in self])

    @cached_property
    def starts(self) -> list[int]:
        """First answer row of each example when all are laid end to end; the last entry is their total."""
        starts = [0]
        for example in self:
            starts.append(starts[-1] + len(example.answer))
        return starts


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and the N answer rows in them."""

    ids: Tensor  # [B, S]
    mask: Tensor  # [B, S] 1 at tokens, 0 at padding
    where: Tensor  # [N] flat positions b · S + t of the answer rows
    labels: Tensor  # [N] token that each row should predict
    owner: Tensor  # [N] example of each row, 0 … B − 1

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device) for t in (self.ids, self.mask, self.where, self.labels, self.owner)))


class Encoder:
    """Tokenizer and template together, as one rule from question and answer to ``Example``."""

    def __init__(self, tokenizer, template: TemplateConfig, max_length: int):
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self._known: dict[str, tuple[int, ...]] = {}
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(tokenizer, name) is None:
                raise DataError(f"the tokenizer has no {name}: answers need an end and batches need padding")

    def prompt(self, question: str) -> tuple[int, ...]:
        return self._ids(self.template.prompt.format(question=question))

    def example(self, id: str, question: str, answer: str) -> Example:
        """Encode one pair; refuse one that is longer than the model's context."""
        prompt, ids = self.prompt(question), self._ids(self.template.answer.format(answer=answer))
        if not prompt or not ids:
            raise DataError(
                f"example {id!r}: {'answer' if prompt else 'prompt'} has no tokens: {question!r} {answer!r}"
            )
        length = len(prompt) + len(ids) + 1
        if length > self.max_length:
            raise DataError(
                f"example {id!r} has {length} tokens, the models take at most {self.max_length}: {question[:60]!r}…"
            )
        return Example(id, prompt, (*ids, self.tokenizer.eos_token_id))

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _ids(self, text: str) -> tuple[int, ...]:
        # The jobs of a grid encode the same texts again and again; the tokenizer is the slow part of that.
        if text not in self._known:
            self._known[text] = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad to the longest example and list the answer rows, example by example."""
    longest = max(len(e.prompt) + len(e.answer) for e in examples)
    ids = torch.full((len(examples), longest), pad_id)
    mask = torch.zeros_like(ids)
    where, labels, owner = [], [], []
    for b, e in enumerate(examples):
        tokens = e.prompt + e.answer
        ids[b, : len(tokens)] = torch.tensor(tokens)
        mask[b, : len(tokens)] = 1
        first = b * longest + len(e.prompt) - 1
        where += range(first, first + len(e.answer))
        labels += e.answer
        owner += [b] * len(e.answer)
    return Batch(ids, mask, torch.tensor(where), torch.tensor(labels), torch.tensor(owner))


def by_length(examples: Sequence[Example], batch_size: int, most_rows: int | None = None) -> list[list[int]]:
    """Indices in batches of similar length, longest first: little padding, and memory peaks at the start.

    A batch holds at most ``batch_size`` examples and (beyond its first) ``most_rows`` answer rows.
    """
    batches: list[list[int]] = []
    rows = 0
    for i in sorted(range(len(examples)), key=lambda i: -(len(examples[i].prompt) + len(examples[i].answer))):
        n = len(examples[i].answer)
        if not batches or len(batches[-1]) == batch_size or (most_rows is not None and rows + n > most_rows):
            batches.append([])
            rows = 0
        batches[-1].append(i)
        rows += n
    return batches


def most_rows(vocabulary: int, device: torch.device) -> int:
    """Answer rows to hold at once: on a CPU few enough to stay in its cache, on a GPU enough to fill it."""
    return max(1, (2**21 if device.type == "cpu" else 2**27) // vocabulary)
