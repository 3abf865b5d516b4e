"""From a dialogue to a prompt: by the tokenizer's chat template, or by the data set's own template."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from unlearn.data.encoding import NO_CLOCK, Encoder

ROLES = ("system", "developer", "user", "assistant")


def text_ids(tokenizer, text: str, special: bool = True) -> list[int]:
    """Of a text that goes on, with the BOS of those tokenizers that write one."""
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids[:-1] if special and ids and ids[-1] == tokenizer.eos_token_id else ids


class Chat:
    """Prompts of dialogues. ``templated``: by a chat template; else a dialogue is one question."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self.templated = bool(encoder.tokenizer.chat_template)

    def ids(self, messages: Any) -> tuple[int, ...]:
        """``ValueError`` for messages that cannot be asked here."""
        turns = [_turn(i, m) for i, m in enumerate(messages)] if isinstance(messages, list) else []
        if not turns:
            raise ValueError('must be a list like [{"role": "user", "content": "…"}]')
        if turns[-1]["role"] != "user":
            raise ValueError(f"the last one is the {turns[-1]['role']}'s: must be the user's")
        if self.templated:
            return self._templated(turns)
        if len(turns) > 1:
            raise ValueError(
                f"are {len(turns)}: the model has no chat template and answers single questions, so there must be one "
                "message, the user's"
            )
        asked = self._encoder.template.prompt.format(question=turns[0]["content"])
        return tuple(text_ids(self._encoder.tokenizer, asked))

    def _templated(self, turns: list[dict[str, str]]) -> tuple[int, ...]:
        tokenizer, template = self._encoder.tokenizer, self._encoder.template
        if template.kind == "chat" and template.system is not None and turns[0]["role"] not in ("system", "developer"):
            turns = [{"role": "system", "content": template.system}, *turns]
        try:
            ids = tokenizer.apply_chat_template(
                turns,
                chat_template=NO_CLOCK + tokenizer.get_chat_template(),
                tokenize=True,
                return_dict=False,
                add_generation_prompt=True,
                date_string=template.date,
            )
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses them: {error}") from None
        return tuple(ids)


def _turn(index: int, message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or set(message) - {"role", "content", "name"}:
        raise ValueError(f"number {index}: must have role and content, and nothing besides")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"number {index}: role={role!r:.80}: must be one of {', '.join(ROLES)}")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        content = "".join(parts) if parts and all(isinstance(p, str) for p in parts) else None
    if not isinstance(content, str):
        raise ValueError(f"number {index}: content must be a text, or a list of parts of type text")
    return {"role": role, "content": content}
