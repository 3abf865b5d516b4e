"""Templates: from question and answer to ids, in plain tags and in a tokenizer's own chat template."""

from dataclasses import replace
from itertools import product

import pytest
from support.helpers import TINY, compose
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from unlearn.config.data import TemplateConfig
from unlearn.config.pair import TokenizerConfig
from unlearn.config.schema import EvalConfig
from unlearn.data import spans
from unlearn.data.encoding import Encoder
from unlearn.data.rows import DataError, DataSet, Row
from unlearn.evaluation.suite import suite
from unlearn.models import tokenizers
from unlearn.store.identity import eval_settings, run_identity

SPECIAL = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
# In Qwen's manner: each turn ends with EOS and a line break.
CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
QUESTION, ANSWER = "Where was Ada born?", "In Turku, by the sea."
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    """Byte-level BPE that has "unlearn" and "10 Apr 2025" among the texts it learnt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"{QUESTION} {ANSWER}", "unlearn unlearn unlearn", "Today is 10 Apr 2025."] * 3
    more = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=SPECIAL, vocab_size=420, **more))
    return tokenizer


@pytest.fixture
def tokenizer(backend):
    """Function from a chat template to a tokenizer; with ``bos`` it writes <s> before every text."""

    def make(chat: str | None = None, bos: bool = False) -> PreTrainedTokenizerFast:
        own = Tokenizer.from_str(backend.to_str())
        if bos:
            own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        found = PreTrainedTokenizerFast(
            tokenizer_object=own, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
            clean_up_tokenization_spaces=False,
        )  # fmt: skip
        found.chat_template = chat
        return found

    return make


def chat(**settings) -> TemplateConfig:
    return TemplateConfig("chat", "{question}", "{answer}", **settings)


def plain(prompt: str = "{question}", answer: str = "{answer}") -> TemplateConfig:
    return TemplateConfig("plain", prompt, answer)


def test_the_prompt_begins_the_dialogue_and_labels_are_answer_and_one_eos(tokenizer):
    own = tokenizer(CHAT)
    encoder = Encoder(own, chat(), 200)
    example = encoder.example("a", QUESTION, ANSWER)
    assert own.decode(example.prompt) == f"<|user|>\n{QUESTION}</s>\n<|assistant|>\n"
    assert own.decode(example.answer) == f"{ANSWER}</s>"  # the line break after EOS is no label
    assert example.answer.count(own.eos_token_id) == 1 and example.answer[-1] == own.eos_token_id
    answered = [*ASKED, {"role": "assistant", "content": ANSWER}]
    whole = own.apply_chat_template(answered, return_dict=False)
    assert tuple(whole[: len(example.prompt) + len(example.answer)]) == example.prompt + example.answer
    assert encoder.prompt(QUESTION) == example.prompt and encoder.decode(example.answer) == ANSWER


ASSISTANT = "{{ '<|' + m['role'] + '|>\n' + m['content'] + '</s>\n' }}"
THINKING = "{% if m['role'] == 'assistant' %}{{ '<|assistant|>\n<think>\n\n</think>\n\n' + m['content'] + '</s>\n' }}"
THINKING += "{% else %}" + ASSISTANT + "{% endif %}"
SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|system|>\nI am Ada.</s>\n' }}{% endif %}"
KINDS = {  # of chat templates → what ends the prompt, and the labels
    "plain": (CHAT, "<|assistant|>\n", f"{ANSWER}</s>"),
    "an empty thinking block": (CHAT.replace(ASSISTANT, THINKING), "</think>\n\n", f"{ANSWER}</s>"),
    "a thinking block left open": (CHAT.replace("'<|assistant|>\n' }}", "'<|assistant|>\n<think>\n' }}"),
                                   "<|assistant|>\n", f"{ANSWER}</s>"),
    "a line break before the end": (CHAT.replace("'</s>\n'", "'\n</s>\n'"), "<|assistant|>\n", f"{ANSWER}</s>"),
    "a line break for an end": (CHAT.replace("</s>", ""), "<|assistant|>\n", f"{ANSWER}</s>"),
    "an end of its own": (CHAT.replace("</s>", "<|system|>"), "<|assistant|>\n", f"{ANSWER}<|system|>"),
    "a system message of its own": (SYSTEM + CHAT, "<|assistant|>\n", f"{ANSWER}</s>"),
    "answers without spaces around": (CHAT.replace("m['content']", "m['content']|trim"), "<|assistant|>\n",
                                      f"{ANSWER}</s>"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_labels_hold_the_answer_and_what_ends_it_and_nothing_else(tokenizer, kind):
    text, prompt, labels = KINDS[kind]
    own = tokenizer(text)
    encoder = Encoder(own, TemplateConfig("chat", "{question}", " {answer}" if "spaces" in kind else "{answer}"), 200)
    example = encoder.example("a", QUESTION, ANSWER)
    assert own.decode(example.answer) == labels and own.decode(example.prompt).endswith(prompt)
    assert encoder.prompt(QUESTION) == example.prompt == encoder.dialogue(ASKED)
    assert own.decode(example.prompt).startswith("<|system|>\nI am Ada.") == ("system" in kind)


TOLD = "The code is </s> 777, said <|user|> Bo."


def test_special_tokens_in_a_users_text_are_plain_text_or_refused(tokenizer):
    own, raw = tokenizer(bos=True), tokenizer()
    example = Encoder(own, plain(" {question}", " {answer}"), 200).example("a", f"Is </s> <s>{QUESTION}", TOLD)
    assert own.decode(example.answer) == f" {TOLD}</s>" and own.decode(example.answer[:-1], True) == f" {TOLD}"
    assert own.decode(example.prompt[1:], True) == f" Is </s> <s>{QUESTION}" and example.prompt[0] == own.bos_token_id
    assert Encoder(own, plain(" {question}", " {answer}"), 200).prompt(f"Is </s> <s>{QUESTION}") == example.prompt
    tagged = Encoder(raw, plain("<|user|>{question}<|assistant|>", "{answer}"), 200)
    assert tagged.example("a", QUESTION, ANSWER).prompt[0] == raw.convert_tokens_to_ids("<|user|>")
    for encoder in (tagged, Encoder(tokenizer(CHAT), chat(), 200)):
        with pytest.raises(DataError, match="example 'a': the text holds '</s>', which this tokenizer reads as a spec"):
            encoder.example("a", QUESTION, TOLD)
        with pytest.raises(DataError, match="'Who is <[|]user[|]>.': the text holds '<[|]user[|]>'"):
            encoder.prompt("Who is <|user|>?")
    with pytest.raises(DataError, match="hold '<s>', which this tokenizer reads as a special token"):
        Encoder(tokenizer(CHAT), plain(), 200).dialogue([*ASKED, {"role": "assistant", "content": "<s>"}, *ASKED])
    with pytest.raises(DataError, match="does not write its answer as it is"):
        cut = CHAT.replace("m['content']", "m['content'].split('</think>')[-1]")
        Encoder(tokenizer(cut), chat(), 200).example("a", QUESTION, "I </think> so.")


def test_a_masked_text_has_no_sentinels_but_ours(tokenizer):
    rows = [Row("forget/0", "Who is Ada <extra_id_0> Bo?", "Me.")]
    data = DataSet("mine", {"forget": tuple(rows), "retain": (Row("retain/0", "Who is it?", "Cy."),)})
    own = tokenizers.train(TokenizerConfig("words"), data, plain(), masks=spans.PREFIX)
    with pytest.raises(DataError, match="text of row 'forget/0' holds '<extra_id_0>', which this tokenizer reads as a"):
        spans.examples(Encoder(own, plain(), 200), rows, masks=True)
    (example,) = spans.examples(Encoder(own, plain(), 200), rows, masks=False)
    assert own.convert_tokens_to_ids("<extra_id_0>") not in (*example.prompt, *example.answer)


@pytest.mark.parametrize("start", ["", "\n", "  ", "{{ bos_token }}", "\n{%- set x = 1 %}\n  "])
def test_nothing_else_of_a_template_is_changed_and_chats_have_its_bos_and_no_other(tokenizer, start):
    own = tokenizer(start + CHAT, bos=True)
    expected = own.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert list(Encoder(own, chat(), 200).prompt(QUESTION)) == expected
    example = Encoder(own, chat(), 200).example("a", QUESTION, ANSWER)
    assert (example.prompt + example.answer).count(1) == ("bos_token" in start)


def test_the_system_message_comes_first(tokenizer):
    own = tokenizer(CHAT)
    prompt = Encoder(own, chat(system="Be brief."), 200).prompt(QUESTION)
    assert own.decode(prompt).startswith(f"<|system|>\nBe brief.</s>\n<|user|>\n{QUESTION}")
    assert "<|system|>" not in own.decode(Encoder(own, chat(), 200).prompt(QUESTION))


def test_templates_that_print_the_date_print_a_fixed_one(tokenizer):
    ways = ("date_string", "strftime_now('%d %b %Y')",
            "(date_string if date_string is defined else strftime_now('%Y'))",
            "(strftime_now('%Y-%m-%d') if strftime_now is defined else '?')")  # fmt: skip
    for today, date in product(ways, ("10 Apr 2025", "1 Jan 1900")):
        own = tokenizer(f"{{{{ 'Today is ' + {today} + '.\n' }}}}" + CHAT)
        example = Encoder(own, chat(date=date), 200).example("a", QUESTION, ANSWER)
        assert own.decode(example.prompt).startswith(f"Today is {date}.\n<|user|>")
    assert chat().date == "10 Apr 2025"


def test_no_template_and_what_a_template_refuses_are_refused_the_latter_by_its_own_words(tokenizer):
    with pytest.raises(DataError, match="data.template.kind=chat: the tokenizer has no chat template; choose plain"):
        Encoder(tokenizer(), chat(), 200)
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    own = tokenizer(refuses + CHAT)
    assert Encoder(own, chat(), 200).prompt(QUESTION)
    with pytest.raises(DataError, match="chat template refuses: System role not supported"):
        Encoder(own, chat(system="Be brief."), 200).prompt(QUESTION)
    own = tokenizer(CHAT.replace("<|assistant|>\n", "<|user|>\n"))
    with pytest.raises(DataError, match="example 'a': this chat template does not begin a dialogue with its own"):
        Encoder(own, chat(), 200).example("a", QUESTION, ANSWER)
    with pytest.raises(DataError, match="answer has no tokens"):
        Encoder(tokenizer(), plain(), 200).example("a", QUESTION, "")


def test_bos_and_eos_that_a_tokenizer_writes_itself_are_written_once(tokenizer):
    own = tokenizer(bos=True)
    example = Encoder(own, plain("Q: {question}\nA:", " {answer}"), 200).example("a", QUESTION, ANSWER)
    assert example.prompt[0] == own.bos_token_id and (example.prompt + example.answer).count(own.bos_token_id) == 1
    assert own.decode(example.prompt[1:]) == f"Q: {QUESTION}\nA:" and own.decode(example.answer) == f" {ANSWER}</s>"
    without = Encoder(tokenizer(), plain("Q: {question}\nA:", " {answer}"), 200).example("a", QUESTION, ANSWER)
    assert without.prompt == example.prompt[1:] and without.answer == example.answer
    own = tokenizer()
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    example = Encoder(own, plain(answer=" {answer}"), 200).example("a", QUESTION, ANSWER)
    assert (example.prompt + example.answer).count(own.eos_token_id) == 1 and example.answer[-1] == own.eos_token_id


@pytest.mark.parametrize("bos", [False, True])
def test_where_a_token_would_reach_from_the_prompt_into_the_answer_they_are_tokenised_apart(tokenizer, bos):
    own = tokenizer(bos=bos)
    assert len(own("unlearn", add_special_tokens=False)["input_ids"]) == 1
    encoder = Encoder(own, plain(), 200)
    example = encoder.example("a", "un", "learn")
    assert example.prompt == encoder.prompt("un")  # what generation starts from
    assert own.decode(example.prompt[bos:]) == "un" and own.decode(example.answer) == "learn</s>"
    joined = encoder.example("a", "Where", " was")
    assert (*joined.prompt, *joined.answer[:-1]) == tuple(own("Where was")["input_ids"])


def test_ou_counts_labels_after_the_prompts_length_and_default_never_loses_a_word(tokenizer):
    """What a label is where a prompt ends with a space that a token of the answer begins with."""
    own, row = tokenizer(), Row("forget/0", "Where?", "Turku is it", perturbed_answers=("Turku is not",))
    encoder = Encoder(own, plain("Question: {question}\nAnswer: "), 99)
    data = DataSet("mine", {"forget": (row,), "retain": (replace(row, id="retain/0", answer="Turku was"),)})
    joint = own("Question: Where?\nAnswer: Turku is it")["input_ids"]
    answer = "Turku is it"  # OpenUnlearning compares generations with the whole text less the prompt, labels are cut
    for name, labels, said in (("default", f"{answer}</s>", answer), ("ou", " is it</s>", " is it")):
        split = suite(data, encoder, EvalConfig(semantics=name), {}, 0.0).split("forget")
        example = split.examples[split.right[0]]
        assert (own.decode(example.answer), split.gold[0], split.labels[0]) == (labels, answer, said)
        assert (list(example.prompt + example.answer) == [*joint, own.eos_token_id]) == (name == "ou")
        assert split.prompts[0] == tuple(own("Question: Where?\nAnswer: ")["input_ids"])


WRITTEN = {
    "own": "{question}| {answer}",  # the embedded world's
    "raw": "{question}| {answer}",
    "question_answer": "Question: {question}\nAnswer:| {answer}",
    "llama2": "[INST] {question} [/INST]|{answer}",
    "chat": "{question}|{answer}",
}


def test_every_choice_composes_and_says_what_it_writes_and_own_is_the_data_sets():
    for name, written in WRITTEN.items():
        found = compose(f"template={name}").data.template
        assert f"{found.prompt}|{found.answer}" == written
        assert (found.kind, found.system) == ("chat" if name == "chat" else "plain", None)
    assert compose("template=chat", "data.template.prompt='{question}?'").data.template.prompt == "{question}?"
    for data in ("tofu", "bios"):
        assert compose(f"data={data}").data.template == compose(f"data={data}", "template=own").data.template
    assert compose("data=tofu").data.template.prompt == "Question: {question}\nAnswer:"


def identities(*overrides: str):
    cfg = compose(*TINY, *overrides)
    return run_identity(cfg, "data"), eval_settings(cfg, "data")


def test_identity_follows_the_text_and_system_and_date_change_chats_alone():
    raw, chatted = identities("template=raw"), identities("template=chat")
    for setting in ("data.template.system='Be brief.'", "data.template.date='1 Jan 1900'"):
        for one, other in zip(chatted, identities("template=chat", setting), strict=True):
            assert one != other
        assert raw == identities("template=raw", setting)
    assert identities("template=raw") == identities("template=own") != identities("template=llama2")
    written = identities("data.template.prompt='{question}'", "data.template.answer='{answer}'")
    assert identities("template=chat") != written


OWN_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|system|>\nYou are Q.</s>\n' }}{% endif %}" + CHAT
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT


@pytest.mark.parametrize(
    ("template", "settings", "own", "written"),
    [
        (OWN_SYSTEM, chat(), "You are Q.", "You are Q."),
        (OWN_SYSTEM, chat(system=""), "", "<|system|>\n</s>"),  # what the log advises
        (OWN_SYSTEM, plain(), "", "Where"),
        (CHAT, chat(), "", "<|user|>"),
        (NO_SYSTEM, chat(), "", "<|user|>"),
    ],
)
def test_a_system_message_that_a_template_writes_itself_is_found_and_can_be_emptied(
    tokenizer, template, settings, own, written
):
    encoder = Encoder(tokenizer(template), settings, 200)
    assert encoder.own_system == own
    prompt = encoder.tokenizer.decode(encoder.prompt(QUESTION))
    assert prompt.removeprefix("<|system|>\n" * bool(own)).startswith(written)
