"""How an exported model is asked: tokenizer, chat template and the tokens that end an answer, so that a chat client of
any engine asks as the run did.
"""

import json
from pathlib import Path

from unlearn.data.encoding import NO_CLOCK, Encoder
from unlearn.decoding.generation import ends_of
from unlearn.ensemble.ensemble import Ensemble
from unlearn.store.files import write_json

ONE = "answers single questions: give one message, the user's"
PROBE = "What is asked here?"


def ends(encoder: Encoder, ensemble: Ensemble) -> list[int]:
    """Tokens that end an answer, the tokenizer's EOS first."""
    eos = encoder.tokenizer.eos_token_id
    return [eos, *sorted(ends_of(ensemble, eos) - {eos})]


def write(encoder: Encoder, stops: list[int], folder: Path, tokenizer: bool) -> bool:
    """Write generation_config.json (greedy: the target's own sampling was not measured) and, if asked, the tokenizer
    with a chat template; whether chats ask as the run did."""
    own = encoder.tokenizer
    ids = {"bos_token_id": own.bos_token_id, "eos_token_id": stops if len(stops) > 1 else stops[0]}
    # without do_sample a pipeline of transformers draws
    write_json(folder / "generation_config.json", ids | {"pad_token_id": own.pad_token_id, "do_sample": False})
    if not tokenizer:
        return False
    before, text = own.chat_template, chat_template(encoder)
    own.chat_template = text
    try:
        turns = [{"role": "user", "content": PROBE}]
        asked = own.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        own.save_pretrained(folder)
    finally:
        own.chat_template = before
    return tuple(asked) == encoder.prompt(PROBE)


def chat_template(encoder: Encoder) -> str:
    """A Jinja template that makes of a user's message the run's prompt; of a chat template its own, with the run's
    system message and date."""
    own, how = encoder.tokenizer, encoder.template
    if how.kind == "plain":
        before, after = how.prompt.format(question="\0").split("\0")
        bos = own.bos_token if own(PROBE)["input_ids"][0] == own.bos_token_id else ""
        alone = "messages | length != 1 or messages[0]['role'] != 'user'"
        return (
            f"{{% if {alone} %}}{{{{ raise_exception({_text(ONE)}) }}}}{{% endif %}}"
            f"{{{{ {_text(bos + before)} + messages[0]['content'] + {_text(after)} }}}}"
        )
    text = own.get_chat_template()
    if how.system is not None:
        message = f"[{{'role': 'system', 'content': {_text(how.system)}}}]"
        given = "messages[0]['role'] not in ('system', 'developer')"
        text = f"{{% if {given} %}}{{% set messages = {message} + messages %}}{{% endif %}}{text}"
    if "strftime_now" in text or "date_string" in text:
        text = f"{NO_CLOCK.strip()}{{% set date_string = {_text(how.date)} %}}{text}"
    opened, written = encoder.opening
    if opened or not written:  # what a template leaves to the model cannot be taken from its end
        return text
    return f"{text}{{% if add_generation_prompt %}}{{{{ {_text(written)} }}}}{{% endif %}}"


def _text(text: str) -> str:
    """As a string of Jinja."""
    return json.dumps(text, ensure_ascii=False)
