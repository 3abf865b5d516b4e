"""What a server is asked before anything else: whether its numbers are those of the texts that it is sent.

Two short texts. The rows that it gives of a text must be those that it gives when it continues the text's beginnings:
so are found an echo that is off by one (llama.cpp), log-probabilities that are none, and tokens that cannot be told
apart. What it calls the tokens must be what they are here. The rows are kept: who starts later compares them.
"""

import logging
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unlearn.blackbox import forms
from unlearn.blackbox.client import COMPLETIONS, Client, Refused
from unlearn.blackbox.forms import ECHO, PROMPT, Lacks, Texts, Way
from unlearn.blackbox.questions import NEXT, ROWS, Answer, BlackBoxError, Question
from unlearn.store.identity import digest

log = logging.getLogger(__name__)
SENTENCE = "The capital of France is Paris, and the capital of Italy is"
LONG, LEAST = 8, 4  # tokens of a text; different ones that make a text of it
KNOWN, TRIES = 2, 6  # texts that are asked about, and where they do not tell anything
LIKELY = -5.0  # log-probability of tokens that are compared
SAME, OTHER = 0.3, 1.0  # nats: rows of one text by two ways (servers compute in bf16), rows of two texts
DRIFT = 1e-2  # distance in total variation at which it is another model
MISNAMED = 0.2  # share of tokens that may be called otherwise: programs differ in how they write spaces
MOST = re.compile(r"max\w* (?:allowed|logprobs)\D{0,9}(\d+)")  # in the words of a server that gives no more
SHUT = (401, 403)  # who asks is refused, whatever is asked
WRONG = 2  # tries more for an answer that is wrong


class Tested(NamedTuple):
    """How a server is asked, and how far its rows are from those that it gave before."""

    way: Way
    drift: float | None  # None: it was never asked before


class _Trial:
    """One way of asking a server, and what it calls tokens then."""

    def __init__(self, client: Client, way: Way):
        self.client, self.way, self.texts, self.url = client, way, client.texts, client.http.url
        self.names: dict[int, str] = {}

    def ask(self, question: Question) -> Answer:
        k = self.client.http.k or (0 if question.kind == ROWS else 5)  # whole vocabularies come by the rows of texts
        return self.client.ask(question, k, self.way, WRONG, self._names)[0]

    def _names(self, data: Any) -> None:
        for row in data["choices"][0].get("prompt_logprobs") or ():
            told = {int(t): e.get("decoded_token") for t, e in (row or {}).items() if isinstance(e, dict)}
            self.names |= {token: name for token, name in told.items() if isinstance(name, str)}


def run(client: Client) -> Tested:
    """Raises ``BlackBoxError`` for a server that cannot be used, or that is no longer the model it was."""
    http, reasons, noted = client.http, [], client.memo.noted("form")
    ways = [Way(form, after) for form in (PROMPT, ECHO) for after in (1, 0) if http.form in ("auto", form)]
    for way in sorted(ways, key=lambda way: list(way) != noted):  # first what worked before
        trial = _Trial(client, way)
        try:
            rows = _consistent(trial)
        except (Refused, Lacks) as error:
            if isinstance(error, Refused) and error.status in SHUT:
                raise
            reasons.append(f"form={way.form} with max_tokens={way.after}: {error}")
            continue
        _check_names(trial)
        client.memo.note("form", way)
        return Tested(way, _drift(client, rows))
    most = MOST.search("\n".join(reasons))
    raise BlackBoxError(
        f"{http.url}: must give log-probabilities of a prompt's tokens (k={http.k}); a chat API alone never can\n"
        f"vLLM does, k up to its --max-logprobs{f'; take pair.target.http.k={most[1]}' if most else ''}. It said:\n"
        + "\n".join(dict.fromkeys(reasons))
    )


def _consistent(trial: _Trial) -> list[tuple[Question, Answer]]:
    """Fixed questions with their answers, for later starts."""
    kept: list[tuple[Question, Answer]] = []
    telling = False  # whether rows before and after a token differ enough to distinguish them
    for ids in _sequences(trial.texts):
        first = trial.ask(Question(NEXT, ids))
        longer = (*ids, first.best())
        then = trial.ask(Question(NEXT, longer))
        tells = _gap(then, 0, first, 0) > OTHER
        if tells or len(kept) < KNOWN:
            text = Question(ROWS, (*longer, then.best()), first=1)
            _compare(trial, text, trial.ask(text), first, then)
        if len(kept) < KNOWN:
            kept.append((Question(NEXT, ids), first))
        telling |= tells
        if telling and len(kept) == KNOWN:
            return kept
    log.warning("%s: its rows hardly depend on the text, so an echo that is off by one would not be seen", trial.url)
    return kept


def _compare(trial: _Trial, text: Question, rows: Answer, first: Answer, then: Answer) -> None:
    at, known = len(text.ids) - 2 - text.first, f"{trial.url} (form={trial.way.form}): "
    gaps = [_gap(rows, at, first, 0), _gap(rows, at + 1, then, 0)]
    if max(gaps) <= SAME:
        return
    if _gap(rows, at, then, 0) <= SAME:
        rule = "(abetlen/llama-cpp-python#1983); nothing can be trained on them: take another server, e.g. vLLM"
        raise BlackBoxError(f"{known}its log-probabilities of a text are off by one {rule}")
    why = f"by up to {max(gaps):.3g} nats for likely tokens; it may round, penalise or not heed temperature 0"
    raise BlackBoxError(f"{known}its log-probabilities of a text are not those with which it continues it: {why}")


def _gap(a: Answer, i: int, b: Answer, j: int) -> float:
    """Largest difference of log-probabilities over the tokens that are likely in row j of b."""
    one, other = a.entries(i), b.entries(j)
    likely = {t: p for t, p in other.items() if p >= LIKELY} or dict([max(other.items(), key=lambda e: e[1])])
    floor = float(a.logp[i, : None if a.ids is None else -1].min())  # more a token that is not listed does not have
    return max(abs(one[t] - p) if t in one else max(0.0, p - floor) for t, p in likely.items())


def _sequences(texts: Texts) -> Iterator[tuple[int, ...]]:
    """Texts of known ids: a sentence, if the tokenizer knows its words, and words in no order; always the same."""
    sentence = tuple(texts.tokenizer(SENTENCE, add_special_tokens=False)["input_ids"])
    known = len(set(sentence)) >= LEAST
    if known:
        yield sentence
    special = set(texts.tokenizer.all_special_ids)
    usual = [i for i in sorted(set(texts.tokenizer.get_vocab().values())) if i not in special]
    drawn = random.Random(0)
    for _ in range(TRIES - known):
        yield tuple(drawn.choice(usual) for _ in range(LONG))


# --- names of tokens ------------------------------------------------------------------------------------------------


def _check_names(trial: _Trial) -> None:
    """Refuse a server that reads other tokens; say so where it cannot be known."""
    texts, url = trial.texts, trial.url
    if not trial.names and trial.way.form == ECHO:
        trial.names |= _echoed_names(trial)
    both = {t: (_plain(name), _plain(texts.of(t))) for t, name in trial.names.items() if t < texts.width}
    known = [token for token, names in both.items() if all(names)]
    other = [token for token in known if both[token][0] != both[token][1]]
    if len(other) > MISNAMED * len(known):
        token = other[0]
        more = f"and so are {len(other)} of {len(known)} tokens that were compared"
        raise _other_tokenizer(url, f"token {token}", trial.names[token], f"{texts.of(token)!r} here, {more}")
    if not _check_ids(trial) and not known:
        log.warning("%s does not say what it calls its tokens: that they are the pair's is not checked", url)


def _other_tokenizer(url: str, what: str, theirs: Any, here: str) -> BlackBoxError:
    rule = "target and small pair must share one vocabulary, index for index"
    there = f"{what} is {forms.short(theirs)} there and {here}"
    return BlackBoxError(f"{url}: its tokenizer is not that of the pair: {there}; {rule}")


def _echoed_names(trial: _Trial) -> dict[int, str]:
    """The texts by which a server echoes tokens, where it is not asked for ids."""
    *_, ids = _sequences(trial.texts)
    http, question = trial.client.http, Question(ROWS, ids, first=1)
    body = forms.body(question, http.model, trial.way, http.k, trial.texts.width)
    body.pop("return_tokens_as_token_ids")

    def read(data: Any) -> tuple[list[Any], int]:
        return data["choices"][0]["logprobs"]["tokens"], question.tokens

    try:
        told, _ = trial.client.post(COMPLETIONS, body, question.tokens, read, WRONG)
    except (LookupError, TypeError):
        return {}
    return {token: name for token, name in zip(ids, told, strict=False) if isinstance(name, str)}


def _check_ids(trial: _Trial) -> bool:
    """Whether the server could be asked to tokenise, as vLLM can; refused if it does so otherwise."""
    *_, ids = _sequences(trial.texts)
    tokenizer = trial.texts.tokenizer
    text = tokenizer.decode(list(ids))
    body = {"model": trial.client.http.model, "prompt": text, "add_special_tokens": False}
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    try:
        found, _ = trial.client.post("/tokenize", body, 0, lambda data: (data.get("tokens"), 0), retries=WRONG)
    except (BlackBoxError, AttributeError):
        return False
    if isinstance(found, list) and found != own:
        raise _other_tokenizer(trial.url, repr(text), found, f"{own} here")
    return isinstance(found, list)


def _plain(name: str) -> str:
    """A token's text without what programs write in their own way; empty where nothing is left, or half a character."""
    text = name.replace("▁", " ").replace("Ġ", " ").strip()
    return "" if "\ufffd" in text else text


# --- the same model as before ---------------------------------------------------------------------------------------


def _drift(client: Client, rows: Sequence[tuple[Question, Answer]]) -> float | None:
    http, memo, moved = client.http, client.memo, []
    for question, answer in rows:
        name, now = f"canary {digest(question.ids)}", {str(t): p for t, p in answer.entries(0).items()}
        if before := memo.noted(name):
            # total variation of two rows over the tokens that both list, all others being one
            p, q = (np.exp([row[t] for t in before if t in now]) for row in (before, now))
            moved.append(float(np.abs(p - q).sum() + abs(p.sum() - q.sum())) / 2)
        else:
            memo.note(name, now)
    if moved and max(moved) > DRIFT:
        far = f"a known distribution moved by {max(moved):.3g} (total variation; {DRIFT:g} is allowed)"
        rule = "what is stored is the first one's; to fetch the new one's, give pair.target.http.revision=WORD"
        raise BlackBoxError(f"{http.url}: another model answers as {http.model!r} than before: {far}; {rule}")
    return max(moved, default=None)
