"""Tokenizers trained on a data set's own text, for pairs that are trained from scratch.

Both kinds give back exactly the text they were given (for words that occur in the data set), so generations can be
compared with answers without any normalisation.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unlearn.config import TemplateConfig, TokenizerConfig
from unlearn.data.rows import DataSet

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
# One token per word (with the space before it), per punctuation mark and per remaining white-space character.
WORD = r" ?\w+|[^\w\s]|\s"


def train(cfg: TokenizerConfig, data: DataSet, template: TemplateConfig) -> PreTrainedTokenizerFast:
    """Train a word or byte-level BPE tokenizer on every text of the data set (holdout included: only its words)."""
    tokenizer = _words() if cfg.kind == "words" else _bpe()
    if cfg.kind == "words":
        trainer = trainers.WordLevelTrainer(special_tokens=[PAD, EOS, UNK], vocab_size=1_000_000, show_progress=False)
    else:
        trainer = trainers.BpeTrainer(
            special_tokens=[PAD, EOS, UNK],
            vocab_size=cfg.vocab_size,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    tokenizer.train_from_iterator(texts(data, template), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def texts(data: DataSet, template: TemplateConfig) -> Iterable[str]:
    """Every prompt and every answer, as the template writes them."""
    rows = [row for split in data.splits.values() for row in split] + list(data.wordings)
    for row in rows:
        for question in filter(None, (row.question, row.paraphrased_question)):
            yield template.prompt.format(question=question)
        for answer in filter(None, (row.answer, row.paraphrased_answer, *row.perturbed_answers)):
            yield template.answer.format(answer=answer)
    for refusal in data.refusals:
        yield template.answer.format(answer=refusal)
