"""Ask any model before there is a run: a file of questions becomes one of questions, answers and their probabilities.

The model is a pretrained one as it is, or behind a server. ``data.forget=FILE`` takes what is written.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unlearn.data.encoding import Encoder, Example, Examples
from unlearn.data.rows import DataError, DataSet
from unlearn.decoding.generation import Decoding, ends_of, greedy
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.scoring import score
from unlearn.grid.questions import OWN, TARGET, Call, Question, answered, append, config
from unlearn.models import hub, llama, tokenizers
from unlearn.runs.learner import initialise
from unlearn.runs.workbench import Workbench
from unlearn.store import sources
from unlearn.store.entries import Store
from unlearn.store.identity import digest, template
from unlearn.store.progress import progress

log = logging.getLogger(__name__)
ANYTHING = 1_000_000  # tokens, where nobody says what a model takes
PIECE = 16  # questions at a time: what a kill loses
SAID = 5  # places that a message names


@dataclass(frozen=True)
class Asked:
    """A model, and how it is asked."""

    bench: Workbench  # without data
    how: Decoding
    template: str  # the file of conf/template, or what was given of it

    @property
    def encoder(self) -> Encoder:
        return self.bench.encoder

    @cached_property
    def ensemble(self) -> Ensemble:
        """The model alone; loaded when it is first asked."""
        return self.bench.alone("target")

    @property
    def mark(self) -> str:
        """In every line that is written: tells answers that were got in another way."""
        way = template(self.encoder.template), self.how.max_new_tokens
        return digest([self.bench.fingerprint("target"), *way], 12)

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        kind, ends = self.ensemble.members[0].kind, ends_of(self.ensemble, self.how.eos_id)
        said = kind.say(prompts, self.how.max_new_tokens, ends)  # of a server each is one question
        if said is None:
            said = greedy(self.ensemble, prompts, 1.0, self.how)
        return [self.encoder.decode([token for token in ids if token not in ends]) for ids in said]

    def prob(self, examples: Examples) -> list[float]:
        """Per answer token, the geometric mean with its end: what a run calls the probability of its forget set."""
        if not examples:
            return []
        found = score(self.ensemble, examples, [1.0], {}, self.how.pad_id, self.how.batch_size)
        return found[1.0].prob.tolist()


def run(call: Call) -> None:
    """Write answers that the files of a call lack yet. ``ConfigError``, ``DataError`` come before a model is loaded."""
    asked, out, most = _opened(call), call.out, call.cfg.eval.max_new_tokens
    there = answered(out, asked.mark) | answered(call.unknown, asked.mark)
    todo = [q for q in call.questions if q.text not in there]
    prompts = [_prompt(asked, question) for question in todo]
    log.info("asking %d of %d questions, template=%s", len(todo), len(call.questions), asked.template)
    if todo:
        # what a server is asked at most: for each answer, and for its probability by a text of all its tokens
        texts = Examples(Example("", prompt, (asked.how.eos_id,) * (most + 1)) for prompt in prompts)
        asked.ensemble.members[0].kind.announce(texts, prompts, (), most)
    silent, cut, held = [], [], {True: 0, False: 0}
    with progress(len(todo), "asking", "question") as bar:
        for i in range(0, len(todo), PIECE):
            some = todo[i : i + PIECE]
            answers = zip(some, asked.answer(prompts[i : i + PIECE]), strict=True)
            said = [(q, a, asked.encoder.said(q.place, q.text, a)) for q, a in answers]
            silent += [question.place for question, _, pair in said if pair is None]
            said = [each for each in said if each[2] is not None]
            pairs = Examples(pair for *_, pair in said)
            found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
            for (question, answer, _), prob in zip(said, asked.prob(pairs), strict=True):
                row = zip(OWN, (question.text, answer, round(prob, 6), asked.mark), strict=True)
                found[question.is_known(answer)].append(dict(row) | question.more)
            for known, file in ((False, call.unknown), (True, out)):
                append(file, found[known])
                held[known] += len(found[known])
            cut += [question.place for question, _, pair in said if len(pair.answer) > most]
            bar.update(len(some))
    if silent:
        log.warning("questions without an answer that can be used, left out: %d, at %s", len(silent), _some(silent))
    if cut:
        what = "answers that were cut at eval.max_new_tokens=%d, raise it for whole ones: %d, to the questions at %s"
        log.warning(what, most, len(cut), _some(cut))
    print(f"written: {held[True]} new answers to {out}")
    if call.unknown.is_file():
        print(f"         {held[False]} that do not hold the fact of their row's key, to {call.unknown}")
    if out.is_file():
        print(f"to forget it: data=jsonl data.forget={out} template={asked.template}")


def _opened(call: Call) -> Asked:
    """Tokenizer first, so that what cannot be asked is refused before there is a model."""
    cfg, overrides = call.cfg, call.overrides
    pair = cfg.pair
    source = sources.tokenizer_source(pair)
    own = source is pair.target
    tokenizer = hub.tokenizer("model" if own else "tokenizer", source)
    chosen = next((o.partition("=")[2] for o in overrides if o.startswith("template=")), None)
    if chosen is None and not any(o.startswith("data.template.") for o in overrides):
        chosen = "chat" if tokenizer.chat_template else "question_answer"
        cfg = config([*overrides, f"template={chosen}"])
    initialise(cfg)
    longest, width = ANYTHING, tokenizers.size(tokenizer)
    if pair.target.kind != "http":
        about = llama.config(hub.locate("model", pair.target)).get_text_config()
        longest = getattr(about, "max_position_embeddings", None) or ANYTHING
        width = about.vocab_size if own else hub.check(TARGET, pair.target, tokenizer, 1)
        width = hub.common_width({pair.target.source: width}, tokenizer)
    encoder = Encoder(tokenizer, cfg.data.template, longest)
    bench = Workbench(cfg, Store(cfg.paths.store), DataSet("questions", {"forget": (), "retain": ()}), encoder, width)
    how = Decoding.by(tokenizer, cfg.eval.max_new_tokens, min(PIECE, cfg.eval.batch_size))
    return Asked(bench, how, chosen or "…")


def _prompt(asked: Asked, question: Question) -> tuple[int, ...]:
    try:
        found = asked.encoder.prompt(question.text)
    except DataError as error:
        raise DataError(f"{question.place}: {error}") from None
    room = asked.encoder.max_length - asked.how.max_new_tokens - 1
    if not 0 < len(found) <= room:
        rule = f"with its template must have 1 to {room:,} tokens, so that an answer finds room"
        raise DataError(f"{question.place}: {question.text[:60]!r} has {len(found):,}: {rule}")
    return found


def _some(places: Sequence[str]) -> str:
    return "; ".join(places[:SAID]) + (" …" if len(places) > SAID else "")
