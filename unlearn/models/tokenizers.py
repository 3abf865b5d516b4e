"""Tokenizers: trained on a data set's own text, for pairs that are trained from scratch, or pretrained.

Both trained kinds give back exactly the text they were given (for words that occur in the data set), so generations can
be compared with answers without any normalisation.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unlearn.config.data import TemplateConfig
from unlearn.config.pair import TokenizerConfig
from unlearn.data.rows import DataSet
from unlearn.data.spans import SENTINEL, SENTINELS
from unlearn.store.files import read_json
from unlearn.store.sources import is_gguf

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
# One token per word (with the space before it), per punctuation mark and per remaining white-space character.
WORD = r" ?\w+|[^\w\s]|\s"


def train(
    cfg: TokenizerConfig, data: DataSet, template: TemplateConfig, masks: str | None = None
) -> PreTrainedTokenizerFast:
    """Train a word or byte-level BPE tokenizer on every text of the data set (holdout included: only its words).
    ``masks``: for models of masked texts it also has sentinels, and the words of this text."""
    special = [PAD, EOS, UNK, *(sentinels() if masks is not None else ())]
    if cfg.kind == "words":
        tokenizer, decoder = Tokenizer(models.WordLevel(unk_token=UNK)), decoders.Fuse()
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
        trainer = trainers.WordLevelTrainer(special_tokens=special, vocab_size=1_000_000, show_progress=False)
    else:
        tokenizer, decoder = Tokenizer(models.BPE()), decoders.ByteLevel()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            special_tokens=special, vocab_size=cfg.vocab_size, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    tokenizer.decoder = decoder
    tokenizer.train_from_iterator([*texts(data, template), *filter(None, [masks])], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK, clean_up_tokenization_spaces=False,
        padding_side="left",
    )  # fmt: skip


def sentinels() -> list[AddedToken]:
    """The tokens that stand for masked words; each takes the space before it."""
    return [AddedToken(SENTINEL.format(k), lstrip=True, special=True) for k in range(SENTINELS)]


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


def place(folder: str | Path) -> dict[str, str]:
    """What ``from_pretrained`` is told of a model's folder, or of its GGUF file."""
    path = Path(folder)
    if is_gguf(path):
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(folder)}


def load(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer from its folder, with padding on the left, an end of sequence (else that of the model beside it) and
    a padding token. Where it has none, one is taken that it has, since a new one would need a row in every embedding,
    and that no text begins or ends with: a special token called something with "pad", else "unk", else "reserved"; EOS
    only where there is no other, since programs that read a saved tokenizer hide what equals the padding."""
    tokenizer = AutoTokenizer.from_pretrained(**place(folder), padding_side="left", trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        end = (read_json(folder / "config.json") or {}).get("eos_token_id")
        if end is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end[0] if isinstance(end, list) else end)
    if tokenizer.pad_token_id is None:
        special = [t.content for _, t in sorted(tokenizer.added_tokens_decoder.items()) if t.special]
        free = [t for t in special if t not in (tokenizer.bos_token, tokenizer.eos_token)]
        named = (t for word in ("pad", "unk", "reserved") for t in free if word in t.lower())
        tokenizer.pad_token = next(named, tokenizer.eos_token)
    return tokenizer


def size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that it can give."""
    return max(tokenizer.get_vocab().values()) + 1
