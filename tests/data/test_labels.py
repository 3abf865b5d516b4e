"""What a label is: where a prompt ends, in our own reading and in OpenUnlearning's."""

from dataclasses import replace

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unlearn.config.data import TemplateConfig
from unlearn.config.schema import EvalConfig
from unlearn.data.encoding import Encoder
from unlearn.data.rows import DataSet, Row
from unlearn.evaluation.suite import suite as make_suite


def merging():
    """A byte-level BPE that knows " Paris" as one token, so a prompt that ends with a space reaches into the answer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(["Question: Where? Answer: Paris is it"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def test_ou_counts_labels_after_the_prompts_length_and_default_never_loses_a_word():
    tokenizer = merging()
    template = TemplateConfig(prompt="Question: {question}\nAnswer: ", answer="{answer}")
    row = Row("forget/0", "Where?", "Paris is it", perturbed_answers=("Paris is not",))
    texts = {}
    for name in ("default", "ou"):
        data = DataSet("mine", {"forget": (row,), "retain": (replace(row, id="retain/0", answer="Paris was"),)})
        made = make_suite(data, Encoder(tokenizer, template, 99), EvalConfig(semantics=name), {}, 0.0)
        split = made.split("forget")
        example = split.examples[split.right[0]]
        texts[name] = tokenizer.decode(example.answer), split.gold[0]
        joint = tokenizer("Question: Where?\nAnswer: Paris is it")["input_ids"]
        assert (list(example.prompt + example.answer) == [*joint, tokenizer.eos_token_id]) == (name == "ou")
        assert split.prompts[0] == tuple(tokenizer("Question: Where?\nAnswer: ")["input_ids"])
    assert texts == {"default": ("Paris is it<eos>", "Paris is it"), "ou": (" is it<eos>", "is it")}
