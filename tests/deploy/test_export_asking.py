"""A chat client of any engine asks an export as its run asked."""

import pytest
from jinja2 import TemplateError
from support.served import bytewise
from tokenizers import processors
from transformers import AutoTokenizer

from unlearn.config.data import TemplateConfig
from unlearn.data.encoding import Encoder
from unlearn.deploy.export import members as asking
from unlearn.store.files import read_json

QUESTION = 'Who wrote "Ada" in the\n"Red House"?'
TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
SAYS = "{% if add_generation_prompt %}[assistant]{% endif %}"
THINKS = TURNS.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}")


def chat(**more) -> TemplateConfig:
    return TemplateConfig("chat", "{question}", "{answer}", **more)


@pytest.mark.parametrize(
    "chat_template, how, bos, same",
    [
        (None, TemplateConfig(), False, True),
        (None, TemplateConfig(prompt='{{}} "Ask"\n{question} \\n\'?\'', answer=" {answer}"), True, True),
        (TURNS + SAYS, TemplateConfig(), False, True),  # a chat model that was asked by another template
        (TURNS + SAYS, chat(), True, True),
        (TURNS + SAYS, chat(system='Be "brief".'), False, True),
        ("{{ strftime_now('%Y') }}{{ bos_token }}" + TURNS + SAYS, chat(date="3 May 2001"), True, True),
        ("{% if not date_string is defined %}{% set date_string = 'today' %}{% endif %}{{ date_string }}"
         + TURNS + SAYS, chat(system="Hm.", date="3 May 2001"), False, True),
        (THINKS + SAYS, chat(), False, True),  # before an answer stands an empty thinking block
        (TURNS + SAYS.replace("]{%", "]<think>{%"), chat(), False, False),  # begun, and left to the model
    ],
)  # fmt: skip
def test_the_chat_template_of_an_export_makes_the_run_s_prompt(tmp_path, chat_template, how, bos, same):
    own = bytewise()
    own.add_special_tokens({"bos_token": "<s>"})
    if bos:
        ids = [("<s>", own.bos_token_id)]
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
    own.chat_template = chat_template
    encoder = Encoder(own, how, 400)
    assert asking.write_asking(encoder, [256, 9], tmp_path, True) == same and own.chat_template == chat_template
    written = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": QUESTION}]
    asked = written.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert (tuple(asked) == encoder.prompt(QUESTION)) == same
    generating = read_json(tmp_path / "generation_config.json")
    assert generating["eos_token_id"] == [256, 9] and generating["do_sample"] is False
    if how.kind == "plain":
        with pytest.raises(TemplateError, match="answers single questions"):
            written.apply_chat_template([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])


def test_without_a_tokenizer_only_the_ends_of_answers_are_written(tmp_path):
    assert asking.write_asking(Encoder(bytewise(), TemplateConfig(), 400), [256], tmp_path, False) is False
    assert [p.name for p in tmp_path.iterdir()] == ["generation_config.json"]
