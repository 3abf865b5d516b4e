"""How a question is put to /v1/completions, and how an answer is read. What is not as it must be is ``Wrong``.

Two forms of asking for the rows of a text: ``prompt_logprobs`` (vLLM; keyed by token ids) and ``echo`` with
``logprobs``, keyed by ids (``"token_id:7"``) where the server knows ``return_tokens_as_token_ids``, else by texts.
Continuations are asked for with ``logprobs`` in either form. Whole vocabularies only come by the rows of texts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from unlearn.blackbox.questions import NEXT, ROWS, SAY, Answer, Question

PROMPT, ECHO = "prompt_logprobs", "echo"
BY_ID = "token_id:"
FLOOR = -1e4  # vLLM writes −9999 for −∞
ABOVE = 1e-4  # what a log-probability may be above 0, and
ENTRY = 200  # bytes of JSON that a token with its log-probability may take on average; 70 to 100 are usual
MASS = 1e-3  # a sum of probabilities away from 1, by rounding


class Wrong(ValueError):
    """An answer that is not what was asked for, and what it is."""


class Lacks(Wrong):
    """An answer without the field that was asked for: the server does not know this form."""


class Way(NamedTuple):
    """How the rows of a text are asked for."""

    form: str
    after: int  # tokens that are generated behind the text, 1 or 0


class Texts:
    """The texts of tokens, for servers that call tokens by them."""

    def __init__(self, tokenizer, width: int):
        self.tokenizer, self.width = tokenizer, width

    def of(self, token: int) -> str:
        return self.tokenizer.decode([token])

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for token in sorted(set(self.tokenizer.get_vocab().values())):
            found.setdefault(self.of(token), []).append(token)
        return found

    def id(self, name: Any) -> int:
        """The token of a name in an answer; ``Wrong`` where the name could be several tokens', or nobody's."""
        if not isinstance(name, str):
            raise Wrong(f"a token is called {short(name)}")
        if name.startswith(BY_ID):
            return _number(name.removeprefix(BY_ID))
        named = self._ids.get(name, [])
        if len(named) == 1:
            return named[0]
        why = f"is the text of the tokens {', '.join(map(str, named[:5]))}" if named else "is not a token's text here"
        raise Wrong(f"a token is called by its text (return_tokens_as_token_ids is not known), and {short(name)} {why}")


def body(question: Question, model: str, way: Way, k: int, width: int) -> dict[str, Any]:
    asked = {"model": model, "prompt": list(question.ids), "temperature": 0, "return_tokens_as_token_ids": True}
    if question.kind != ROWS:
        asked |= {"max_tokens": max(1, question.most), "logprobs": k}
        # vLLM takes over what a model's generation_config.json says, where nothing is said
        return asked | ({"repetition_penalty": 1.0} if question.kind == SAY else {})
    rows = {"prompt_logprobs": k or -1} if way.form == PROMPT else {"echo": True, "logprobs": k or width}
    return asked | {"max_tokens": way.after} | rows


def most_bytes(question: Question, k: int, width: int) -> int:
    """What a right answer may need: of every token of the text and every one generated so many others."""
    return ENTRY * question.tokens * ((k or width + width // 4) + 2)  # whole vocabularies may be padded there


def read(question: Question, form: str, k: int, data: Any, texts: Texts) -> Answer:
    """The answer, every number of which was looked at; ``Wrong`` else."""
    if not isinstance(data, dict) or not isinstance(data.get("choices"), list) or len(data["choices"]) != 1:
        raise Wrong(f"not one choice: {short(data)}")
    choice = data["choices"][0]
    if not isinstance(choice, dict):
        raise Wrong(f"a choice is {short(choice)}")
    if question.kind == ROWS:
        listed = _prompt_rows(question, choice) if form == PROMPT else _echo_rows(question, choice, texts)
        return _packed(list(listed), question.first, k, texts.width)
    found = []
    for at, (token, value, top) in enumerate(zip(*_lists(choice), strict=True)):
        own = texts.id(token)
        found.append((_with_own(top, own, value, at, texts), own))
    if not 1 <= len(found) <= max(1, question.most):
        raise Wrong(f"{len(found)} tokens generated, and {max(1, question.most)} were asked for")
    if question.kind == NEXT:  # its own token plays no part: a server may draw where it should take the likeliest
        entries = found[0][0]
        found = [(entries, min(entries, key=lambda i: (-entries[i], i)))]
    said = tuple(own for _, own in found) if question.kind == SAY else ()
    return replace(_packed(found, 0, k, texts.width), said=said)


def _prompt_rows(question: Question, choice: Mapping[str, Any]) -> Iterator[tuple[dict[int, float], int]]:
    listed = choice.get("prompt_logprobs")
    if listed is None:
        raise Lacks("no prompt_logprobs in it")
    if not isinstance(listed, list) or len(listed) != len(question.ids):
        count = len(listed) if isinstance(listed, list) else short(listed)
        raise Wrong(f"prompt_logprobs of {count} positions, and the text has {len(question.ids)} tokens")
    for at in range(question.first, len(listed)):
        if not isinstance(listed[at], dict):
            raise Wrong(f"position {at}: {short(listed[at])} instead of tokens")
        entries = {_number(i): _value(e["logprob"] if isinstance(e, dict) and "logprob" in e else e, at)
                   for i, e in listed[at].items()}  # fmt: skip
        if question.ids[at] not in entries:
            raise Wrong(f"position {at}: the text's own token {question.ids[at]} is not among those given")
        yield entries, question.ids[at]


def _echo_rows(question: Question, choice: Mapping[str, Any], texts: Texts) -> Iterator[tuple[dict[int, float], int]]:
    tokens, values, tops = _lists(choice)
    n = len(question.ids)
    if not n <= len(tokens) <= n + 1:
        raise Wrong(f"an echo of {len(tokens)} tokens, and the text has {n}")
    for at in range(question.first, n):
        own = question.ids[at]
        by_id = isinstance(tokens[at], str) and tokens[at].startswith(BY_ID)
        same = texts.id(tokens[at]) == own if by_id else tokens[at] == texts.of(own)
        if not same:
            raise Wrong(f"position {at} of the echo is {short(tokens[at])}, and {own} ({texts.of(own)!r}) was sent")
        yield _with_own(tops[at], own, values[at], at, texts), own


def _lists(choice: Mapping[str, Any]) -> tuple[list, list, list]:
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        raise Lacks("no logprobs in it")
    lists = tuple(found.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not all(isinstance(values, list) for values in lists):
        raise Lacks("logprobs without tokens, token_logprobs and top_logprobs")
    if len(set(map(len, lists))) != 1:
        raise Wrong(f"lists of {' and '.join(str(len(values)) for values in lists)} tokens in logprobs")
    return lists


def _with_own(top: Any, own: int, value: Any, at: int, texts: Texts) -> dict[int, float]:
    if not isinstance(top, dict):
        raise Wrong(f"position {at}: {short(top)} instead of tokens")
    entries = {texts.id(name): _value(v, at) for name, v in top.items()}
    if len(entries) < len(top):
        raise Wrong(f"position {at}: two names of one token")
    value = _value(value, at)
    if abs(entries.setdefault(own, value) - value) > MASS:
        raise Wrong(f"position {at}: token {own} has the log-probabilities {entries[own]:.6g} and {short(value)}")
    return entries


def _packed(rows: Sequence[tuple[dict[int, float], int]], first: int, k: int, width: int) -> Answer:
    """Rows that hold what they must: of each its tokens' log-probabilities, and its own token; from ``first`` on."""
    for at, (entries, _) in enumerate(rows, first):
        mass = math.fsum(math.exp(p) for p in entries.values())
        if mass > 1 + MASS or (k == 0 and mass < 1 - MASS):
            raise Wrong(f"position {at}: probabilities sum to {mass:.6g}")
        if len(entries) < (min(k, width) if k else width):
            few = f"{k} asked for: the server gives so many with pair.target.http.k={len(entries)}"
            all_ = f"all asked for, of which the pair's vocabulary has {width:,}"
            raise Wrong(f"position {at}: {len(entries)} tokens given, and {few if k else all_}")
        if not k and (max(entries) + 1 != len(entries) or len(entries) != len(rows[0][0])):
            raise Wrong(f"position {at}: {len(entries)} tokens given, the last {max(entries)}: some are missing")
    if k:
        best = [sorted(entries.items(), key=lambda e: (-e[1], e[0]))[: min(k, width)] for entries, _ in rows]
        listed = [[*some, (own, entries[own])] for some, (entries, own) in zip(best, rows, strict=True)]
        ids = np.array([[token for token, _ in row] for row in listed], dtype=np.int32)
        logp = [[p for _, p in row] for row in listed]
    else:
        ids, logp = None, [[entries[i] for i in range(len(entries))] for entries, _ in rows]
    return Answer(ids, np.minimum(np.array(logp, dtype=np.float32), 0))


def _number(name: Any) -> int:
    if not isinstance(name, str) or not (name.isascii() and name.isdigit()) or len(name) > 9:
        raise Wrong(f"a token is called {short(name)} instead of by its number")
    return int(name)


def _value(value: Any, at: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise Wrong(f"position {at}: {short(value)} is not a log-probability")
    if value > ABOVE:
        raise Wrong(f"position {at}: {short(value)} is above 0 (vLLM: --logprobs-mode raw_logprobs)")
    return float(max(value, FLOOR))


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
