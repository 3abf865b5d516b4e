"""From texts to token ids and to batches that know where their answer rows are.

B examples, S tokens, N answer tokens of the batch, V vocabulary. Labels are aligned here, once: the row at position t
predicts the token at t + 1, and the closing EOS is a label. Only the rows of answers are ever scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor

from unlearn.config.data import TemplateConfig
from unlearn.data.rows import DataError, Row
from unlearn.store.identity import digest

# Before a chat template: what it calls for today's date gives ``date_string`` instead, whatever form it asks for.
NO_CLOCK = "{% macro strftime_now(form) %}{{ date_string }}{% endmacro %}\n"


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
        return list(accumulate((len(example.answer) for example in self), initial=0))

    def rows_of(self, indices: Sequence[int]) -> np.ndarray:
        """Where the answer rows of these examples are when all are laid end to end, [N]."""
        return np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in indices])


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
    """Tokenizer and template together, as one rule from question and answer to ``Example``.

    Prompt and answer are tokenised as one text, so that a token is what it is in a text; where the last token of the
    prompt would then reach into the answer, they are tokenised apart, since generation starts after the prompt.

    ``labels_by_length`` does as OpenUnlearning does: the first tokens of the text, as many as the prompt has alone, are
    the prompt, and all others the answer, with what a chat template writes after its EOS and one more EOS.
    """

    def __init__(self, tokenizer, template: TemplateConfig, max_length: int, labels_by_length: bool = False):
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.labels_by_length = labels_by_length
        self._known: dict[tuple[str, str | None], tuple[int, ...]] = {}
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(tokenizer, name) is None:
                raise DataError(f"the tokenizer has no {name}: answers need an end and batches need padding")
        if template.kind == "chat" and not tokenizer.chat_template:
            raise DataError("data.template.kind=chat: the tokenizer has no chat template; choose plain")

    def prompt(self, question: str) -> tuple[int, ...]:
        return self._ids(self.template.prompt.format(question=question))

    def example(self, id: str, question: str, answer: str) -> Example:
        """Encode one pair; refuse one that is longer than the model's context."""
        asked, said = self.template.prompt.format(question=question), self.template.answer.format(answer=answer)
        prompt, full = self._ids(asked), self._ids(asked, said)
        ids = full[len(prompt) :]
        if self.labels_by_length:
            prompt = full[: len(prompt)]
        if full[: len(prompt)] != prompt:
            if self.template.kind == "chat":
                raise DataError(f"example {id!r}: this chat template does not begin a dialogue with its own prompt")
            ids = tuple(self.tokenizer(said, add_special_tokens=False)["input_ids"])
        if not prompt or not ids:
            raise DataError(
                f"example {id!r}: {'answer' if prompt else 'prompt'} has no tokens: {question!r} {answer!r}"
            )
        eos = self.tokenizer.eos_token_id
        if eos in ids and not self.labels_by_length:  # what a chat template writes after it (a line break) is no answer
            ids = ids[: ids.index(eos) + 1]
        if ids[-1] != eos:
            ids = (*ids, eos)
        length = len(prompt) + len(ids)
        if length > self.max_length:
            raise DataError(
                f"example {id!r} has {length} tokens, the models take at most {self.max_length}: {question[:60]!r}…"
            )
        return Example(id, prompt, ids)

    def text(self, id: str, question: str, answer: str) -> Example:
        """Both as one text: the "prompt" is its first token, the "answer", whose rows are scored, all the others."""
        pair = self.example(id, question, answer)
        return Example(id, pair.prompt[:1], (*pair.prompt[1:], *pair.answer))

    def decode(self, ids: Sequence[int]) -> str:
        return self.text_of(ids).strip()

    def text_of(self, ids: Sequence[int]) -> str:
        """Without special tokens; by OpenUnlearning's rule without spaces before punctuation, too."""
        clean = self.labels_by_length or None
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=clean)

    def _ids(self, prompt: str, answer: str | None = None) -> tuple[int, ...]:
        # The jobs of a grid encode the same texts again and again; the tokenizer is the slow part of that.
        if (prompt, answer) not in self._known:
            if self.template.kind == "chat":
                ids = self._chat(prompt, answer)
            else:
                ids = self.tokenizer(prompt + (answer or ""))["input_ids"]  # of some tokenizers with a BOS
                ids = ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids
            self._known[prompt, answer] = tuple(ids)
        return self._known[prompt, answer]

    def _chat(self, prompt: str, answer: str | None) -> list[int]:
        system = [] if self.template.system is None else [{"role": "system", "content": self.template.system}]
        messages = [*system, {"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=NO_CLOCK + self.tokenizer.get_chat_template(),
                tokenize=True,
                return_dict=False,
                add_generation_prompt=answer is None,
                date_string=self.template.date,  # a template that asks for today would give other numbers tomorrow
            )
        except TemplateError as error:  # many have no place for a system message
            raise DataError(f"data.template.kind=chat: the tokenizer's chat template refuses: {error}") from None


def collate(examples: Sequence[Example], pad_id: int, mask_pad: bool = False) -> Batch:
    """Pad to the longest example and list the answer rows, example by example.

    ``mask_pad``: also hide tokens of the text that are the padding token. Wrong, and what public code does.
    """
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
    if mask_pad:
        mask = (ids != pad_id).long()
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


def examples_of(encoder: Encoder, rows: Iterable[Row]) -> Examples:
    """Each row's question with its right answer."""
    return Examples(encoder.example(r.id, r.question, r.answer) for r in rows)
