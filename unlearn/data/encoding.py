"""From texts to token ids and to batches that know where their answer rows are.

B examples, S tokens, N answer tokens of the batch, V vocabulary. Labels are aligned here, once: the row at position t
predicts the token at t + 1, and the closing EOS is a label. Only the rows of answers are ever scored.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from os.path import commonprefix

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
        return np.concatenate([np.arange(0), *(np.arange(self.starts[i], self.starts[i + 1]) for i in indices)])


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and the N answer rows in them."""

    ids: Tensor  # [B, S]
    mask: Tensor  # [B, S] 1 at tokens, 0 at padding
    where: Tensor  # [N] flat positions b · S + t of the answer rows
    labels: Tensor  # [N] token that each row should predict
    owner: Tensor  # [N] example of each row, 0 … B − 1

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device) for t in (self.ids, self.mask, self.where, self.labels, self.owner)))


class Encoder:
    """Tokenizer and template together, as one rule from question and answer to ``Example``.

    Prompt and answer are tokenised as one text, so that a token is what it is in a text; where the last token of the
    prompt would then reach into the answer, they are tokenised apart, since generation starts after the prompt. In a
    chat template's text the answer begins where the answer stands: all before it (a thinking block) is the prompt.

    ``labels_by_length`` does as OpenUnlearning does: the first tokens of the text, as many as the prompt has alone, are
    the prompt, and all others the answer, with what a chat template writes after its EOS and one more EOS.
    ``marked``: special tokens in the texts are ours (sentinels). All others in a user's text are plain text.
    """

    def __init__(
        self, tokenizer, template: TemplateConfig, max_length: int, labels_by_length: bool = False, marked: bool = False
    ):
        self.tokenizer, self.template, self.max_length = tokenizer, template, max_length
        self.labels_by_length, self.marked = labels_by_length, marked
        self._known: dict[tuple[str, bool, bool], tuple[int, ...]] = {}
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(tokenizer, name) is None:
                raise DataError(f"the tokenizer has no {name}: answers need an end and batches need padding")
        if template.kind == "chat" and not tokenizer.chat_template:
            raise DataError("data.template.kind=chat: the tokenizer has no chat template; choose plain")

    def prompt(self, question: str) -> tuple[int, ...]:
        asked, splits = self.template.prompt.format(question=question), self.splits(f"{question[:60]!r}", question)
        if self.template.kind == "chat":
            return self._chat_prompt([self._asked(asked)])
        return self._known.get((asked, splits, False)) or self._tokens(asked, splits)

    def dialogue(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """The prompt of a dialogue in the tokenizer's chat template, whatever kind the data set's is."""
        named = self.special(*(message["content"] for message in messages))
        if named is not None:
            raise DataError(f"hold {named!r}, which this tokenizer reads as a special token")
        return self._chat_prompt(messages)

    def example(self, id: str, question: str, answer: str) -> Example:
        """Encode one pair; refuse one that is longer than the model's context."""
        splits = self.splits(f"example {id!r}", question, answer)
        asked, said = self.template.prompt.format(question=question), self.template.answer.format(answer=answer)
        if self.template.kind == "chat":
            prompt, ids = self._turns(id, asked, said)
        else:
            prompt, ids = self._parts(said, self._ids(asked, splits), self._ids(asked + said, splits), splits)
        if not prompt or not ids:
            empty = "answer" if prompt else "prompt"
            raise DataError(f"example {id!r}: {empty} has no tokens: {question!r} {answer!r}")
        if (length := len(prompt) + len(ids)) > self.max_length:
            most = f"{length} tokens, the models take at most {self.max_length}"
            raise DataError(f"example {id!r} has {most}: {question[:60]!r}…")
        return Example(id, prompt, ids)

    def said(self, id: str, question: str, answer: str) -> Example | None:
        """A model's own answer; None of one that is empty, too long when it is encoded again, or has special tokens."""
        try:
            return self.example(id, question, answer) if answer.strip() else None
        except DataError:
            return None

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

    # --- special tokens -------------------------------------------------------------------------------------------

    def special(self, *texts: str) -> str | None:
        """The first special token that the tokenizer would find in one of the texts."""
        found = (self._special.search(text) for text in texts)
        return next((match.group() for match in found if match), None)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        named = {token.content for token in added if token.special}
        return re.compile("|".join(map(re.escape, sorted(named, key=len, reverse=True))) or r"(?!)")

    def splits(self, where: str, *texts: str) -> bool:
        """Whether a user's texts hold what would be read as special tokens, and is to be split as plain text.
        ``DataError`` where the template has such tokens, too, and both could not be distinguished."""
        named = None if self.marked else self.special(*texts)
        own = self.template.kind == "chat" or self.special(self.template.prompt, self.template.answer) is not None
        if named is not None and own:
            rule = "which this tokenizer reads as a special token, as those of the template; change text or template"
            raise DataError(f"{where}: the text holds {named!r}, {rule}")
        return named is not None

    # --- from text to ids -----------------------------------------------------------------------------------------

    def _ids(self, text: str, splits: bool = False, chat: bool = False) -> tuple[int, ...]:
        # The jobs of a grid encode the same texts again and again; the tokenizer is the slow part of that.
        if (text, splits, chat) not in self._known:
            self._known[text, splits, chat] = self._tokens(text, splits, chat)
        return self._known[text, splits, chat]

    def _tokens(self, text: str, splits: bool = False, bare: bool = False) -> tuple[int, ...]:
        """Ids of a text; unless ``bare`` with the BOS of those tokenizers that write one, and without their EOS."""
        how = {"split_special_tokens": True} if splits else {}
        ids = self.tokenizer(text, add_special_tokens=not bare, **how)["input_ids"]
        return tuple(ids[:-1] if not bare and ids and ids[-1] == self.tokenizer.eos_token_id else ids)

    def _parts(
        self, said: str, prompt: tuple[int, ...], full: tuple[int, ...], splits: bool = False
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and labels of a text's ids, the prompt alone being ``prompt``; the labels end with EOS."""
        ids = full[len(prompt) :]
        if self.labels_by_length:
            prompt = full[: len(prompt)]
        elif full[: len(prompt)] != prompt:
            ids = self._tokens(said, splits, bare=True)
        eos = self.tokenizer.eos_token_id
        if eos in ids and not self.labels_by_length:  # what a template writes after it is not an answer
            ids = ids[: ids.index(eos) + 1]
        return prompt, ids if not ids or ids[-1] == eos else (*ids, eos)

    def _turns(self, id: str, asked: str, said: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and labels in the tokenizer's chat template: the answer and what ends it, and nothing else."""
        turns = [self._asked(asked), {"role": "assistant", "content": said}]
        before, whole = self._begun(self._written(turns[:1])), self._written(turns)
        if not whole.startswith(before):
            raise DataError(f"example {id!r}: this chat template does not begin a dialogue with its own prompt")
        if self.labels_by_length:
            return self._parts(said, self._ids(before, chat=True), self._ids(whole, chat=True))
        ways = (said, said.lstrip(), said.rstrip(), said.strip())  # a template may trim it
        said = next((way for way in ways if whole.startswith(before + way)), None)
        if said is None:
            raise DataError(f"example {id!r}: this chat template does not write its answer as it is")
        end = self._special.match(whole[len(before) + len(said) :].lstrip())
        prompt, ids = self._parts(said, self._ids(before, chat=True), self._ids(before + said, chat=True))
        if end is not None and ids:  # the template's own end of a turn, which need not be the tokenizer's EOS
            ids = (*ids[:-1], self.tokenizer.convert_tokens_to_ids(end.group()))
        return prompt, ids

    def _asked(self, asked: str) -> dict[str, str]:
        return {"role": "user", "content": asked}

    def _chat_prompt(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        text = self._begun(self._written(messages))
        return self._known.get((text, False, True)) or self._tokens(text, bare=True)

    def _begun(self, text: str) -> str:
        """A prompt up to where an answer begins: with an empty thinking block, without one for the model to fill."""
        if self.labels_by_length:
            return text
        opened, written = self.opening
        return text.removesuffix(opened) + written

    @cached_property
    def opening(self) -> tuple[str, str]:
        """What the chat template's prompt ends with where no answer follows, and what stands there before an answer."""
        turns = [self._asked("?"), {"role": "assistant", "content": "!"}]
        before, whole = self._written(turns[:1]), self._written(turns)
        shared = len(commonprefix([before, whole]))
        opened, (written, found, _) = before[shared:], whole[shared:].partition("!")
        return (opened, written) if found and (not opened or "think" in opened) else ("", "")

    @cached_property
    def own_system(self) -> str:
        """The system message that a chat template writes where none is given."""
        turns, found = [self._asked("?")], ""
        with suppress(DataError):  # it has no place for one
            if self.template.kind == "chat" and self.template.system is None:
                plain, given = self._written(turns), self._written([{"role": "system", "content": "\0"}, *turns])
                found = plain[len(commonprefix([plain, given])) :]
                found = found[: len(found) - len(commonprefix([found[::-1], given[::-1]]))]
        return found.strip()

    def _written(self, messages: Sequence[dict[str, str]]) -> str:
        """A dialogue as the tokenizer's chat template writes it; up to the answer where the user has the last word."""
        template = self.template
        system = [] if template.system is None or template.kind != "chat" else [template.system]
        if messages[0]["role"] not in ("system", "developer"):
            messages = [*({"role": "system", "content": text} for text in system), *messages]
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=NO_CLOCK + self.tokenizer.get_chat_template(),
                tokenize=False,
                add_generation_prompt=messages[-1]["role"] == "user",
                date_string=template.date,  # a template that asks for today would give other numbers tomorrow
            )
        except TemplateError as error:  # many have no place for a system message
            raise DataError(f"data.template.kind=chat: the tokenizer's chat template refuses: {error}") from None


def collate(examples: Sequence[Example], pad_id: int, mask_pad: bool = False) -> Batch:
    """Pad to the longest example and list the answer rows, example by example. ``mask_pad`` also hides tokens of the
    text that are the padding token: wrong, and what public code does."""
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
    """Indices in batches of similar length, longest first, so that memory peaks at the start: at most ``batch_size``
    examples and (beyond the first) ``most_rows`` answer rows each."""
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
    return Examples(encoder.example(r.id, r.question, r.answer) for r in rows)
